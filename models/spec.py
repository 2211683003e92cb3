"""The description of a model: its files, its tensors, its preprocessing, and its reported accuracy."""

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
    """How an image that is not square is resized."""

    SHORTER = "shorter"
    STRETCH = "stretch"


class Layout(StrEnum):
    """Order of the axes of an image tensor."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Channels(StrEnum):
    """Order of the colour channels in a model's input."""

    RGB = "RGB"
    BGR = "BGR"


class InputType(StrEnum):
    """Element type of an image tensor."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"


class OutputKind(StrEnum):
    """The kind of scores in a model's output."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """How an image becomes model input.

    The image is turned upright by its EXIF orientation, converted to RGB, and resized so that its shorter side is
    `resize_shorter` pixels (the longer side is rounded). The centre `crop` x `crop` pixels are cut, starting at
    `side // 2 - crop // 2`. With `fit = "stretch"` both sides become `resize_shorter`, whatever the image's shape.
    Then each value becomes `(value * scale - mean) / std`, with mean and std per channel.
    """

    resize_shorter: int = Field(gt=0, le=4096, description="Shorter side after the resize, pixels.")
    crop: int = Field(gt=0, le=4096, description="Side of the centre crop, pixels.")
    interpolation: Interpolation = Field(description="Filter of the reference resize.")
    fit: Fit = Field(default=Fit.SHORTER, description="Keep the image's shape, or stretch it to a square.")
    scale: float = Field(description="Factor for the 0..255 value, before mean and std.")
    mean: tuple[float, float, float] = Field(description="Subtracted after the scale; per channel, R G B.")
    std: tuple[float, float, float] = Field(description="Divides what is left; per channel, R G B.")

    @property
    def is_identity(self) -> bool:
        """Whether the model takes unscaled pixels, 0 to 255."""
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
    dtype: InputType = Field(default=InputType.FLOAT32, description="uint8 takes unscaled pixels.")
    channels: Channels = Field(default=Channels.RGB, description="mean and std are R G B in either case.")
    batch: int | None = Field(default=None, ge=1, le=1024, description="Images per run; none if the axis is dynamic.")


class OutputSpec(_Frozen):
    """The model's own output tensor: floats of shape (n_images, n_classes); more axes of length 1 may follow."""

    name: str
    kind: OutputKind


class Artifact(_Frozen):
    """One file of a model: bundled (`models/artifacts/<model>/<file>`), downloaded, or built by a command."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="File name in the cache and under a mirror's URL.")
    sha256: Sha256
    size_bytes: int = Field(gt=0)
    bundled: bool = False
    sources: tuple[str, ...] = Field(default=(), description="URLs, tried in order.")
    built_by: str | None = Field(default=None, description="The command that builds this file.")
    made_from: Sha256 | None = Field(default=None, description="The artifact that this one was quantised from.")
    note: str | None = Field(default=None, description="A remark, such as how the file was measured.")

    @property
    def build_step(self) -> str | None:
        """`built_by` for a message: in backticks, and with the place for commands that an installed package lacks."""
        if self.built_by is None:
            return None
        return f"`{self.built_by}`" + ("" if self.built_by.startswith("shardlabel ") else " in a source checkout")


class ReportedAccuracy(_Frozen):
    """Accuracy on ImageNet's validation images as reported by `source`, in percent."""

    top1: float = Field(ge=0, le=100)
    top5: float | None = Field(default=None, ge=0, le=100)
    source: str
    precision: Precision | None = Field(default=None, description="Precision reported on; none: the model as such.")


class ModelSpec(_Frozen):
    """A catalog entry. Small and picklable: it is sent to actors, which a session cannot be."""

    name: str = Field(pattern=_NAME)
    version: str = "1"
    description: str
    licence: str
    homepage: str | None = None
    input: InputSpec
    output: OutputSpec
    embedding: str | None = Field(default=None, description="Name of the tensor of penultimate features.")
    preprocessing: Preprocessing
    labels: str = Field(description="Labels file: one class a line, `wnid name, synonym, ...`, or just the name.")
    artifacts: dict[Precision, Artifact] = Field(min_length=1)
    reported: tuple[ReportedAccuracy, ...] = ()
    reported_note: str | None = Field(default=None, description="Why the reported pairs differ.")
    folder: Path = Field(description="Folder of the labels file, and of a user's own model file.")

    @model_validator(mode="after")
    def _check_input(self) -> ModelSpec:
        if self.input.dtype is InputType.UINT8 and not self.preprocessing.is_identity:
            raise ValueError("a uint8 input takes unscaled pixels: scale must be 1, mean 0 and std 1")
        return self

    @staticmethod
    def is_name(text: str) -> bool:
        """Tell whether a text may be a model's name: a valid file name on every system, without a path."""
        return re.fullmatch(_NAME.strip("^$"), text) is not None and len(text) <= 100

    def artifact(self, precision: Precision) -> Artifact:
        """Return the artifact of a precision; for a float16 without its own file, the float32 one that it is made from.

        Raises:
            UnknownModelError: This model has no artifact of that precision.
        """
        if self.is_made(precision):
            return self.artifacts[Precision.FP32]
        if precision not in self.artifacts:
            have = ", ".join(self.artifacts)
            raise UnknownModelError(f"precision must be one that {self.name} has ({have}), got {precision.value}")
        return self.artifacts[precision]

    def is_made(self, precision: Precision) -> bool:
        """Tell whether a precision has no file and is made from float32 at its first use."""
        return precision is Precision.FP16 and precision not in self.artifacts and Precision.FP32 in self.artifacts

    def reported_for(self, precision: Precision) -> tuple[ReportedAccuracy, ...]:
        """Return the accuracies reported for a precision, then those reported for the model as such."""
        own = tuple(pair for pair in self.reported if pair.precision is precision)
        return own + tuple(pair for pair in self.reported if pair.precision is None)

    def graph_settings(self) -> dict[str, Any]:
        """Return the parts of the entry that the joined graph depends on (see `models.graph.join`)."""
        return self.model_dump(mode="json", include={"input", "output", "embedding", "preprocessing"})

    @property
    def preprocessing_id(self) -> str:
        """Return a short hash of the preprocessing: equal ids mean equal pixels."""
        values = self.preprocessing.model_dump(mode="json")
        if self.preprocessing.fit is Fit.SHORTER:
            del values["fit"]  # keeps the ids from before `fit` existed
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
