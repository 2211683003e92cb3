"""Settings of a labelling run, checked where text comes in: the command line and the YAML of `--config`."""

from __future__ import annotations

from enum import StrEnum
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.catalog import DEFAULT_MODEL
from models.decode.decode import DecodeMode
from models.device import DeviceChoice, Provider, SimulatedDevice
from models.errors import ConfigError
from models.inference.classifier import Device
from models.labels import LabelText
from pipeline.storage.uris import without_secrets

# Samples per inference. On a CPU more gain nothing; a GPU wants hundreds.
CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 256


class SourceFormat(StrEnum):
    """How SOURCE holds its images."""

    AUTO = "auto"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    IMAGES = "images"


class Progress(StrEnum):
    """How a run tells how far it is, on standard error."""

    AUTO = "auto"
    PLAIN = "plain"
    NONE = "none"


class Shape(StrEnum):
    """Which processes decode, and which infer."""

    AUTO = "auto"
    FUSED = "fused"
    TWO_STAGE = "two-stage"


class LabelConfig(BaseModel):
    """Everything `shardlabel label` can be told. The same names, with dashes, are its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: tuple[str, ...] = Field(min_length=1, description="Files, folders, globs, brace ranges, or @list.txt.")
    output: str = Field(min_length=1, description="Folder or URI that the Parquet files go to.")
    format: SourceFormat = Field(default=SourceFormat.AUTO, description="How SOURCE holds its images.")
    model: str = Field(default=DEFAULT_MODEL, description="Name in the catalog, or path of an ONNX file.")
    precision: str = Field(default="auto", pattern="^(auto|fp32|fp16|int8)$", description="auto, fp32, int8 or fp16.")
    device: Device | SimulatedDevice = Field(default=Device.AUTO, description="auto, cpu, cuda or tensorrt.")
    top_k: int = Field(default=5, ge=1, le=10_000, description="Labels per image, best first.")
    labels: LabelText = Field(default=LabelText.NAME, description="Class names: name (the first), wnid, or all.")
    embeddings: bool = Field(default=False, description="Also the model's penultimate features.")
    image_column: str | None = Field(default=None, description="Parquet: the column that holds the images.")
    key_column: str | None = Field(default=None, description="Parquet: the column that becomes `key`.")
    carry: tuple[str, ...] = Field(default=(), description="Parquet: columns copied to the output.")
    batch_size: int | None = Field(default=None, ge=1, le=4096, description="Images per inference.")
    preprocess_cpus: int | None = Field(default=None, ge=1, description="CPUs that decode.")
    actors: str | None = Field(
        default=None, pattern=r"^\d+(:\d+)?$", description="Actors that hold the model: N, or MIN:MAX."
    )
    gpus_per_actor: float | None = Field(default=None, gt=0, le=1, description="Share of a GPU for each actor.")
    cuda_graphs: bool = Field(default=False, description="Record a batch's kernels once, and replay them.")
    shape: Shape = Field(default=Shape.AUTO, description="Decode and infer in one actor, or in two stages.")
    decode: DecodeMode = Field(default=DecodeMode.FAST, description="fast, or exact as the reference.")
    max_pixels: int = Field(default=100_000_000, ge=1, description="Larger images are rows too_large, pixels.")
    max_image_bytes: int = Field(default=64 * 2**20, ge=1, description="Likewise, bytes.")
    image_timeout_s: float = Field(
        default=60.0, gt=0, description="What an image may take to decode, and a batch at least to label."
    )
    limit: int | None = Field(default=None, ge=1, description="Label only so many images.")
    max_error_rate: float = Field(default=1.0, ge=0, le=1, description="Exit 3 over this share of unlabelled images.")
    overwrite: bool = Field(default=False, description="Start the output anew.")
    address: str | None = Field(default=None, description="Ray cluster to join.")
    shared_filesystem: bool = Field(default=False, description="All nodes see local SOURCE and DEST under one name.")
    progress: Progress = Field(default=Progress.AUTO, description="auto, plain or none.")

    if not TYPE_CHECKING:  # where the fields are its arguments

        def __init__(self, **values: object) -> None:
            """Check the settings; what cannot be is a ConfigError, as of the command line."""
            try:
                super().__init__(**values)
            except ValidationError as err:
                raise ConfigError(_one_line(err)) from err

    @field_validator("source", "carry", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, (str, PathLike)):
            return (fspath(value),)
        return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("output", "model", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return _plain(value)

    @field_validator("device", mode="before")
    @classmethod
    def _simulated(cls, value: object) -> object:
        simulated = isinstance(value, str) and value.lower().startswith("simulated")
        return SimulatedDevice.parse(str(value).lower()) if simulated else value

    @field_validator("device", "format", "decode", "progress", "shape", "labels", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> LabelConfig:
        if self.actors is not None and not 1 <= self.actor_bounds()[0] <= self.actor_bounds()[1]:
            raise ValueError(f"actors must be N or MIN:MAX with 1 <= MIN <= MAX, got {self.actors}")
        if self.embeddings and isinstance(self.device, SimulatedDevice):
            raise ValueError("embeddings cannot be had of a simulated device")
        return self

    def actor_bounds(self) -> tuple[int, int]:
        """Return the least and the most actors asked for; (0, 0) where nothing was asked for."""
        if self.actors is None:
            return 0, 0
        low, _, high = self.actors.partition(":")
        return int(low), int(high or low)


def _plain(value: object) -> object:
    return fspath(value) if isinstance(value, PathLike) else value


def build_config(options: dict[str, Any], config_file: Path | None = None) -> LabelConfig:
    """Join the options of a command line with those of a YAML file; the command line comes first.

    Args:
        options: Names as in `LabelConfig`; None means not given.
        config_file: YAML whose keys are the option names, with dashes or underscores.

    Raises:
        ConfigError: An unknown key, or a value that cannot be; one line that says which, what it got and expected.
    """
    values = _read_yaml(config_file) if config_file is not None else {}
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        return LabelConfig.model_validate(values)
    except ValidationError as err:
        raise ConfigError(_one_line(err)) from err


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(err).split())}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} must be a table of options, got {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _one_line(err: ValidationError) -> str:
    first = err.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    option = "--" + name.replace("_", "-")
    if name == "source":
        option = "SOURCE"
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.replace("_", "-") for field in LabelConfig.model_fields)
        return f"unknown option {name!r}; known are {known}"
    if first["type"] == "missing":
        return f"{option} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    description = LabelConfig.model_fields[name].description if name in LabelConfig.model_fields else ""
    return f"{option}: {message[0].lower()}{message[1:]}, got {without_secrets(repr(first['input']))} ({description})"


def batch_size(config: LabelConfig, choice: DeviceChoice) -> int:
    """Return the batch size asked for, or the one for the device."""
    if config.batch_size is not None:
        return config.batch_size
    return CPU_BATCH_SIZE if choice.provider is Provider.CPU else GPU_BATCH_SIZE
