"""What a model is: its files, its tensors, how images become its input, and what it was reported to reach."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import UnknownModelError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Precision(StrEnum):
    """Number format of a model's weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Interpolation(StrEnum):
    """Resampling filter of the reference preprocessing; both are antialiased, as Pillow's are."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Layout(StrEnum):
    """Order of the axes of an image tensor."""

    NCHW = "NCHW"
    NHWC = "NHWC"


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
    `side // 2 - crop // 2`. Then, per channel, `(value * scale - mean) / std`.
    """

    resize_shorter: int = Field(gt=0, le=4096, description="Shorter side after the resize, pixels.")
    crop: int = Field(gt=0, le=4096, description="Side of the centre crop, pixels.")
    interpolation: Interpolation = Field(description="Filter of the reference resize.")
    scale: float = Field(description="Factor on the 0..255 value, before mean and std.")
    mean: tuple[float, float, float] = Field(description="Per channel, R G B, subtracted after the scale.")
    std: tuple[float, float, float] = Field(description="Per channel, R G B, divided by.")

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if self.crop > self.resize_shorter:
            raise ValueError(f"crop must be at most resize_shorter ({self.resize_shorter}), got {self.crop}")
        if 0.0 in self.std:
            raise ValueError(f"std must not be 0, got {self.std}")
        return self


class InputSpec(_Frozen):
    """The model's own input tensor: float32, one image per row, batch axis first and free."""

    name: str
    layout: Layout = Layout.NCHW


class OutputSpec(_Frozen):
    """The model's own output tensor: float32 of shape (n_images, n_classes)."""

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


class ReportedAccuracy(_Frozen):
    """Accuracy on ImageNet's validation images as somebody reported it, in percent."""

    top1: float = Field(ge=0, le=100)
    top5: float | None = Field(default=None, ge=0, le=100)
    source: str
    precision: Precision | None = Field(default=None, description="Of which it was reported; none: of the model.")


class ModelSpec(_Frozen):
    """A catalog entry. Small and picklable: it travels to actors; a session cannot."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
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

    def artifact(self, precision: Precision) -> Artifact:
        """Return the artifact of a precision.

        Raises:
            UnknownModelError: This model has no artifact of that precision.
        """
        if precision not in self.artifacts:
            have = ", ".join(self.artifacts)
            raise UnknownModelError(
                f"precision must be one of those that {self.name} has ({have}), got {precision.value}"
            )
        return self.artifacts[precision]

    def reported_for(self, precision: Precision) -> tuple[ReportedAccuracy, ...]:
        """Return what was reported of a precision, or of the model where nothing was."""
        of_it = tuple(pair for pair in self.reported if pair.precision is precision)
        return of_it + tuple(pair for pair in self.reported if pair.precision is None)

    @property
    def preprocessing_id(self) -> str:
        """Return a short hash of the preprocessing: equal ids, equal pixels."""
        text = json.dumps(self.preprocessing.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
