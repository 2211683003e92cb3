"""What a model is: its files, its tensors, how images become its input, and what it was reported to reach."""

from __future__ import annotations

import hashlib
import json
import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import UnknownModelError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class Precision(StrEnum):
    """Number format of a model's weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Interpolation(StrEnum):
    """Resampling filter of the reference preprocessing; all are antialiased, as Pillow's are."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Fit(StrEnum):
    """What the resize does to an image that is not square."""

    SHORTER = "shorter"
    STRETCH = "stretch"


class Layout(StrEnum):
    """Order of the axes of an image tensor."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Channels(StrEnum):
    """Order of the colour channels that a model takes."""

    RGB = "RGB"
    BGR = "BGR"


class InputType(StrEnum):
    """Element type of an image tensor."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


class OutputKind(StrEnum):
    """What a model's output holds."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """How an image becomes model input.

    The image is turned upright by its EXIF orientation, made RGB, resized so that its shorter side is
    `resize_shorter` pixels (the longer one rounded), and the centre `crop` x `crop` pixels are cut at
    `side // 2 - crop // 2`. With `fit = "stretch"` both sides become `resize_shorter`, whatever shape the image has.
    Then, per channel, `(value * scale - mean) / std`.
    """

    resize_shorter: int = Field(gt=0, le=4096, description="Shorter side after the resize, pixels.")
    crop: int = Field(gt=0, le=4096, description="Side of the centre crop, pixels.")
    interpolation: Interpolation = Field(description="Filter of the reference resize.")
    fit: Fit = Field(default=Fit.SHORTER, description="Keep the image's shape, or stretch it to a square.")
    scale: float = Field(description="Factor on the 0..255 value, before mean and std.")
    mean: tuple[float, float, float] = Field(description="Per channel, R G B, subtracted after the scale.")
    std: tuple[float, float, float] = Field(description="Per channel, R G B, divided by.")

    @property
    def is_identity(self) -> bool:
        """Whether the model takes pixels as they are, 0 to 255."""
        return self.scale == 1.0 and self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if self.crop > self.resize_shorter:
            raise ValueError(f"crop must be at most resize_shorter ({self.resize_shorter}), got {self.crop}")
        if 0.0 in self.std:
            raise ValueError(f"std must not be 0, got {self.std}")
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)):
            raise ValueError("scale, mean and std must be finite")
        return self


class InputSpec(_Frozen):
    """The model's own input tensor: one image per row, batch axis first."""

    name: str
    layout: Layout = Layout.NCHW
    dtype: InputType = Field(default=InputType.FLOAT32, description="uint8 takes pixels as they are.")
    channels: Channels = Field(default=Channels.RGB, description="mean and std are given as R G B all the same.")
    batch: int | None = Field(default=None, ge=1, le=1024, description="Images per run; none where the axis is free.")


class OutputSpec(_Frozen):
    """The model's own output tensor: floats of shape (n_images, n_classes), or with axes of length 1 behind."""

    name: str
    kind: OutputKind


class Artifact(_Frozen):
    """One file of a model.

    It is bundled (`models/artifacts/<model>/<file>`), downloaded from `sources` in order, or built by `built_by`.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="File name, in the cache and below a mirror.")
    sha256: Sha256
    size_bytes: int = Field(gt=0)
    bundled: bool = False
    sources: tuple[str, ...] = Field(default=(), description="URLs, tried in order.")
    built_by: str | None = Field(default=None, description="The command that makes this file.")
    made_from: Sha256 | None = Field(default=None, description="The artifact that this one was quantised from.")
    note: str | None = Field(default=None, description="What is to be known about it, such as how it was measured.")


class ReportedAccuracy(_Frozen):
    """Accuracy on ImageNet's validation images as somebody reported it, in percent."""

    top1: float = Field(ge=0, le=100)
    top5: float | None = Field(default=None, ge=0, le=100)
    source: str
    precision: Precision | None = Field(default=None, description="Of which it was reported; none: of the model.")


class ModelSpec(_Frozen):
    """A catalog entry. Small and picklable: it travels to actors; a session cannot."""

    name: str = Field(pattern=_NAME)
    version: str = "1"
    description: str
    licence: str
    homepage: str | None = None
    input: InputSpec
    output: OutputSpec
    embedding: str | None = Field(default=None, description="Name of the penultimate features' tensor.")
    preprocessing: Preprocessing
    labels: str = Field(description="Labels file: one class a line, `wnid name, synonym, ...`, or just the name.")
    artifacts: dict[Precision, Artifact] = Field(min_length=1)
    reported: tuple[ReportedAccuracy, ...] = ()
    reported_note: str | None = Field(default=None, description="Why the reported pairs differ.")
    folder: Path = Field(description="Where the labels file, and a user's own model file, lie.")

    @model_validator(mode="after")
    def _check_input(self) -> ModelSpec:
        if self.input.dtype is InputType.UINT8 and not self.preprocessing.is_identity:
            raise ValueError("an input of uint8 takes pixels as they are: scale must be 1, mean 0 and std 1")
        return self

    @staticmethod
    def is_name(text: str) -> bool:
        """Tell whether a model may be called so: what names a file on every system, and no path."""
        return re.fullmatch(_NAME.strip("^$"), text) is not None and len(text) <= 100

    def artifact(self, precision: Precision) -> Artifact:
        """Return the artifact of a precision; float16 without a file of its own is made of the float32 one.

        Raises:
            UnknownModelError: This model has no artifact of that precision.
        """
        if self.is_made(precision):
            return self.artifacts[Precision.FP32]
        if precision not in self.artifacts:
            have = ", ".join(self.artifacts)
            raise UnknownModelError(
                f"precision must be one of those that {self.name} has ({have}), got {precision.value}"
            )
        return self.artifacts[precision]

    def is_made(self, precision: Precision) -> bool:
        """Tell whether a precision has no file, and is made of another at the first use."""
        return precision is Precision.FP16 and precision not in self.artifacts and Precision.FP32 in self.artifacts

    def reported_for(self, precision: Precision) -> tuple[ReportedAccuracy, ...]:
        """Return what was reported of a precision, or of the model where nothing was."""
        of_it = tuple(pair for pair in self.reported if pair.precision is precision)
        return of_it + tuple(pair for pair in self.reported if pair.precision is None)

    def graph_settings(self) -> dict[str, Any]:
        """Return all of the entry that the joined graph is made of, beside the artifact (see `models.graph.join`)."""
        return self.model_dump(mode="json", include={"input", "output", "embedding", "preprocessing"})

    @property
    def preprocessing_id(self) -> str:
        """Return a short hash of the preprocessing: equal ids, equal pixels."""
        values = self.preprocessing.model_dump(mode="json")
        if self.preprocessing.fit is Fit.SHORTER:
            del values["fit"]  # older than the other kind: its ids stay what they were
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
