"""A calibration: the temperature that a model's logits are divided by, and from which score on a label is accepted.

`shardlabel evaluate --fit` writes one, `label` and `serve` take it with `--calibration`. It is of one model in one precision
and decode mode; anywhere else its numbers would mean nothing, so that it is refused there.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from models.decode.mode import DecodeMode
from models.errors import ConfigError
from models.inference.predictions import Float32Array, Int32Array
from models.spec import ModelSpec, Precision, Sha256

FORMAT = "shardlabel-calibration"
VERSION = 1
# Temperatures that are looked at. Those of networks lie between 0.5 and 3.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 4.0

Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Threshold(_Frozen):
    """From which calibrated score on a label is accepted, and what of the images it was chosen on says so."""

    threshold: Rate | None = Field(description="The lowest score that is accepted; none: no score is.")
    images: Count = Field(description="Images that it was chosen on: those that were given the label.")
    accepted: Count = Field(description="Of these, the ones with that score or a higher one.")
    right: Count = Field(description="Of these, the ones whose label is right.")
    lower_bound: Rate = Field(description="Of the precision among accepted images: Wilson's, one-sided, 95 %.")


class ClassThreshold(Threshold):
    """The threshold of one class."""

    id: Count = Field(description="Class index.")
    label: str = Field(description="What the class is called, for people.")


class Judged(_Frozen):
    """What the calibration came to on images that nothing was fitted to. Rates between 0 and 1."""

    images: Count
    error_before: Rate = Field(description="Expected calibration error of the best label's score: 15 equal bins.")
    error_after: Rate
    log_loss_before: FiniteFloat = Field(description="Mean negative log of the true class's probability, nats.")
    log_loss_after: FiniteFloat
    accepted: Count
    right: Count = Field(description="Of those accepted.")


class Calibration(_Frozen):
    """The content of a calibration file. Picklable."""

    format: Literal["shardlabel-calibration"] = "shardlabel-calibration"
    version: Literal[1] = 1
    model: str
    precision: Precision
    artifact_sha256: Sha256
    decode: DecodeMode
    preprocessing: str = Field(description="`ModelSpec.preprocessing_id`.")
    num_classes: int = Field(ge=1)
    temperature: Annotated[FiniteFloat, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
    precision_target: Annotated[FiniteFloat, Field(gt=0, lt=100)] = Field(description="Percent.")
    fitted_on: Count = Field(description="Images that temperature and thresholds were fitted to.")
    judged: Judged | None = None
    pooled: Threshold = Field(description="Of all classes that `classes` does not name.")
    classes: tuple[ClassThreshold, ...] = Field(description="Classes with a threshold of their own, by id.")
    created_by: str

    @model_validator(mode="after")
    def _check(self) -> Calibration:
        ids = [one.id for one in self.classes]
        if ids != sorted(set(ids)) or (ids and ids[-1] >= self.num_classes):
            raise ValueError(f"classes must be ids below {self.num_classes}, each once and in order")
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, however the file is laid out."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @cached_property
    def thresholds(self) -> Float32Array:
        """The lowest score that is accepted, by class index: float32 of shape (num_classes,); infinite where none is."""
        values = np.full(self.num_classes, _lowest(self.pooled), np.float32)
        for one in self.classes:
            values[one.id] = _lowest(one)
        return values

    def accepts(self, label_ids: Int32Array, scores: Float32Array) -> npt.NDArray[np.bool_]:
        """Tell which best labels reach the threshold of their class; bulk and online ask here.

        Args:
            label_ids: int32 of shape (n_images,), the best label of each image.
            scores: float32 of the same shape, calibrated.

        Returns:
            bool of the same shape.
        """
        return np.asarray(scores >= self.thresholds[label_ids])

    def check(self, name: str, spec: ModelSpec, precision: Precision, decode: DecodeMode) -> None:
        """Refuse a calibration that was made of something else.

        Args:
            name: Of the file, for the message.
            spec: The model that is to run.
            precision: In this one.
            decode: With images decoded so.

        Raises:
            ConfigError: Says what differs.
        """
        pairs = {
            "model": (self.model, spec.name),
            "precision": (self.precision.value, precision.value),
            "decode mode": (self.decode.value, decode.value),
            "artifact": (self.artifact_sha256, spec.artifact(precision).sha256),
            "preprocessing": (self.preprocessing, spec.preprocessing_id),
        }
        for what, (have, wanted) in pairs.items():
            if have != wanted:
                way = f"--model {spec.name} --precision {precision.value} --decode {decode.value}"
                raise ConfigError(
                    f"--calibration {name} was made for {what} {have}, and what is to run has {what} {wanted}; run what it "
                    f"was made for, or make another with `shardlabel evaluate SOURCE {way} --fit FILE`"
                )

    def to_text(self) -> str:
        """Return the file's content: JSON, the same for the same values."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def parse_calibration(content: bytes, name: str) -> Calibration:
    """Read the content of a calibration file.

    Args:
        content: Of the file.
        name: Of the file, for messages.

    Raises:
        ConfigError: It is none, is damaged, or is of a version that is not known here.
    """
    again = "make one with `shardlabel evaluate SOURCE --fit FILE`"
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ConfigError(
            f"--calibration {name} is damaged or no calibration: it is not JSON ({err}); {again}"
        ) from err
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(f'--calibration {name} is no calibration: expected JSON with "format": "{FORMAT}"; {again}')
    version = values.get("version")
    if version != VERSION:
        raise ConfigError(
            f"--calibration {name} has version {json.dumps(version)[:40]}, and this shardlabel reads version {VERSION}; "
            f"use the shardlabel that made it ({str(values.get('created_by', 'unknown'))[:60]}), or {again}"
        )
    try:
        return Calibration.model_validate_json(content)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        got = "" if first["type"] == "missing" or not first["loc"] else f", got {repr(first['input'])[:60]}"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"--calibration {name} is damaged: {where}: {message[0].lower()}{message[1:]}{got}; {again}"
        ) from err


def _lowest(one: Threshold) -> float:
    return np.inf if one.threshold is None else one.threshold
