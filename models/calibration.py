"""A calibration: a temperature that divides a model's logits, and for each class the lowest score that is accepted.

`shardlabel evaluate --fit` writes a calibration; `label` and `serve` read it with `--calibration`. It is valid for one
model in one precision and decode mode, and is refused for anything else, where its numbers would mean nothing.
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
# The search range. Temperatures of networks lie between 0.5 and 3.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 4.0

Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Threshold(_Frozen):
    """The lowest calibrated score at which a label is accepted, and the counts that it was chosen by."""

    threshold: Rate | None = Field(description="The lowest accepted score; null if no score is accepted.")
    images: Count = Field(description="Images that got this label, among those that the threshold was chosen on.")
    accepted: Count = Field(description="Of these images, the ones that score at least the threshold.")
    right: Count = Field(description="Of the accepted images, the ones with the right label.")
    lower_bound: Rate = Field(description="Lower bound of the precision of accepted images: Wilson, one-sided, 95 %.")


class ClassThreshold(Threshold):
    """The threshold of one class."""

    id: Count = Field(description="Class index.")
    label: str = Field(description="Name of the class, for the reader.")


class Judged(_Frozen):
    """Results of the calibration on held-out images. Rates are between 0 and 1."""

    images: Count
    error_before: Rate = Field(description="Expected calibration error of the best label's score: 15 equal bins.")
    error_after: Rate
    log_loss_before: FiniteFloat = Field(description="Mean negative log of the true class's probability, nats.")
    log_loss_after: FiniteFloat
    accepted: Count
    right: Count = Field(description="Of the accepted images, the ones with the right label.")


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
    fitted_on: Count = Field(description="Images that the temperature and the thresholds were fitted to.")
    judged: Judged | None = None
    pooled: Threshold = Field(description="The threshold of every class that is not in `classes`.")
    classes: tuple[ClassThreshold, ...] = Field(description="The classes that have their own threshold, by id.")
    created_by: str

    @model_validator(mode="after")
    def _check(self) -> Calibration:
        ids = [one.id for one in self.classes]
        if ids != sorted(set(ids)) or (ids and ids[-1] >= self.num_classes):
            raise ValueError(f"classes must be unique ids below {self.num_classes}, in ascending order")
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 of the content; the file's formatting does not matter."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @cached_property
    def thresholds(self) -> Float32Array:
        """The lowest accepted score by class index: float32 of shape (num_classes,); infinite if none is accepted."""
        values = np.full(self.num_classes, _lowest(self.pooled), np.float32)
        for one in self.classes:
            values[one.id] = _lowest(one)
        return values

    def accepts(self, label_ids: Int32Array, scores: Float32Array) -> npt.NDArray[np.bool_]:
        """Tell which best labels reach the threshold of their class. Bulk and online both use this.

        Args:
            label_ids: int32 of shape (n_images,), the best label of each image.
            scores: float32 of the same shape, calibrated.

        Returns:
            bool of the same shape.
        """
        return np.asarray(scores >= self.thresholds[label_ids])

    def check(self, name: str, spec: ModelSpec, precision: Precision, decode: DecodeMode) -> None:
        """Refuse a calibration that was fitted for another model, precision, decode mode, file or preprocessing.

        Args:
            name: The calibration file's name, for the message.
            spec: The model that will run.
            precision: The precision that it will run in.
            decode: How its images will be decoded.

        Raises:
            ConfigError: Something differs; the message says what.
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
                options = f"--model {spec.name} --precision {precision.value} --decode {decode.value}"
                raise ConfigError(
                    f"--calibration {name} was fitted for {what} {have}, but this run uses {what} {wanted}; use the "
                    f"{what} it was fitted for, or fit another with `shardlabel evaluate SOURCE {options} --fit FILE`"
                )

    def to_text(self) -> str:
        """Return the file's content as JSON; equal values give equal text."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def parse_calibration(content: bytes, name: str) -> Calibration:
    """Read the content of a calibration file.

    Args:
        content: The file's bytes.
        name: The file's name, for messages.

    Raises:
        ConfigError: The file is not a calibration, is damaged, or has an unknown version.
    """
    again = "make one with `shardlabel evaluate SOURCE --fit FILE`"
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ConfigError(
            f"--calibration {name} is damaged or not a calibration: it is not JSON ({err}); {again}"
        ) from err
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(
            f'--calibration {name} is not a calibration: expected JSON with "format": "{FORMAT}"; {again}'
        )
    version = values.get("version")
    if version != VERSION:
        raise ConfigError(
            f"--calibration {name} has version {json.dumps(version)[:40]}, this shardlabel reads version {VERSION}; "
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
