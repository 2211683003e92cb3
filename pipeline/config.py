"""Settings of a labelling run, checked where text comes in: the command line and the YAML of `--config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.catalog import DEFAULT_MODEL
from models.decode.mode import DecodeMode
from models.device import Device, DeviceChoice, Provider, SimulatedDevice
from models.errors import ConfigError
from models.labels import LabelText
from pipeline.options import HIDDEN, build_settings, one_line
from pipeline.storage.uris import without_secrets

# Images per inference. A CPU gains nothing from more; a GPU needs hundreds.
CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 256
# Labels per image.
DEFAULT_TOP_K = 5


class SourceFormat(StrEnum):
    """How SOURCE stores its images."""

    AUTO = "auto"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    IMAGES = "images"


class Progress(StrEnum):
    """How a run shows its progress on standard error."""

    AUTO = "auto"
    PLAIN = "plain"
    NONE = "none"


class Shape(StrEnum):
    """Which processes decode, and which infer."""

    AUTO = "auto"
    FUSED = "fused"
    TWO_STAGE = "two-stage"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _plain(value: object) -> object:
    return fspath(value) if isinstance(value, PathLike) else value


def _split(value: object) -> object:
    values = (value,) if isinstance(value, (str, PathLike)) else value
    return tuple(map(_plain, values)) if isinstance(values, (list, tuple)) else values


def _formed(pattern: str, form: str) -> BeforeValidator:
    """Check a text against a pattern, and name the form in the error, where pydantic would show the pattern."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(f"must be {form}")
        return value

    return BeforeValidator(check)


def _device(value: object) -> object:
    text = _lower(value)
    return SimulatedDevice.parse(text) if isinstance(text, str) and text.startswith("simulated") else text


Lower = BeforeValidator(_lower)
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
# Options that `serve` has too.
ModelName = Annotated[
    str, BeforeValidator(_plain), Field(description="A name of `shardlabel models list`, or an .onnx file.")
]
PrecisionName = Annotated[
    Literal["auto", "fp32", "int8", "fp16"], Lower, Field(description="auto, fp32, int8 or fp16.")
]
DEVICES = "auto, cpu, cuda or tensorrt."
Decoding = Annotated[
    DecodeMode, Lower, Field(description="fast, or exact: the reference preprocessing pixel for pixel.")
]

CalibrationFile = Annotated[
    str | None,
    BeforeValidator(_plain),
    Field(
        description="Path or URI of a file from `shardlabel evaluate --fit`: scores are calibrated, and `accepted` "
        "says which labels reach the threshold of their class."
    ),
]


class LabelConfig(BaseModel):
    """All settings of `shardlabel label`. Its options have the same names, with dashes."""

    # Validators are built on first use: the command line needs only names and descriptions.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    # The field at which each group of options begins in `--help`; the fields are in that order.
    GROUPS: ClassVar[Mapping[str, str]] = {
        "source": "Input",
        "model": "Model",
        "output": "Output",
        "batch_size": "Resources",
        "progress": "Run",
    }

    source: Words = Field(
        min_length=1,
        description="Files, folders, globs, brace ranges such as {00000..00999}.tar, or @list.txt; paths or URIs.",
    )
    format: Annotated[SourceFormat, Lower] = Field(
        default=SourceFormat.AUTO, description="What SOURCE holds: auto, webdataset, parquet or images."
    )
    image_column: str | None = Field(default=None, description="Parquet: the column that holds the images.")
    uri_column: str | None = Field(
        default=None, description="Parquet: the column that holds the images' URIs or paths; the images are fetched."
    )
    key_column: str | None = Field(default=None, description="Parquet: the column that becomes `key`.")
    carry: Words = Field(default=(), description="Parquet: columns to copy to the output, as a,b.")
    allow_private_hosts: bool = Field(
        default=False, description="Allow fetching from hosts on private, loopback and link-local networks."
    )
    connections_per_host: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Maximum connections to one web host at a time, divided among the processes that fetch; each "
        "has at least one.",
    )
    requests_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Maximum requests per second to one web host, of all processes together. [default: no limit]",
    )
    fetch_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds; an image that takes longer to fetch, retries included, has status unreachable.",
    )
    max_pixels: int = Field(default=100_000_000, ge=1, description="Images with more pixels have status too_large.")
    max_image_bytes: int = Field(default=64 * 2**20, ge=1, description="Images with more bytes have status too_large.")
    limit: int | None = Field(default=None, ge=1, description="Label only the first N images.")
    part: Annotated[str | None, _formed(r"\d{1,6}/\d{1,6}", "I/N, as 3/8")] = Field(
        default=None,
        description="I/N: label only part I of N; a shard's name decides its part. Each part needs its own output.",
    )
    missing_ok: bool = Field(default=False, description="Do not fail when planned shards no longer exist.")

    model: ModelName = DEFAULT_MODEL
    precision: PrecisionName = "auto"
    device: Annotated[Device | SimulatedDevice, BeforeValidator(_device)] = Field(
        default=Device.AUTO, description=DEVICES
    )
    decode: Decoding = DecodeMode.FAST
    calibration: CalibrationFile = None

    output: Annotated[str, BeforeValidator(_plain)] = Field(
        min_length=1, description="Folder or URI that the Parquet files are written to."
    )
    top_k: int = Field(
        default=DEFAULT_TOP_K,
        ge=1,
        le=10_000,
        description="Labels per image, best first; by default all of them if a model has fewer.",
    )
    labels: Annotated[LabelText, Lower] = Field(
        default=LabelText.NAME, description="How classes are named: name (the first synonym), wnid, or all."
    )
    embeddings: bool = Field(default=False, description="Write the model's penultimate features too.")
    overwrite: bool = Field(default=False, description="Start the output over instead of resuming it.")
    append: bool = Field(
        default=False,
        description="Also label shards that are new in SOURCE; waits while another run writes to the output.",
    )
    max_error_rate: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Exit with 3 when a larger share of the images could not be labelled; the run stops early "
        "once chance no longer explains it.",
    )

    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description=f"Images per inference. [default: {CPU_BATCH_SIZE} on a CPU, {GPU_BATCH_SIZE} on a GPU]",
    )
    actors: Annotated[str | None, _formed(r"\d+(:\d+)?", "N or MIN:MAX, as 2:8")] = Field(
        default=None,
        description="Number of actors that hold the model, N or MIN:MAX. [default: automatic]",
    )
    preprocess_cpus: int | None = Field(
        default=None, ge=1, description="CPUs that decode for the actors, in separate processes. [default: automatic]"
    )
    gpus_per_actor: float | None = Field(
        default=None, gt=0, le=1, description="Share of a GPU for each actor: 0.5 puts two on a GPU. [default: 1]"
    )
    cuda_graphs: bool = Field(default=False, description="On a GPU: record a batch's kernels once and replay them.")
    image_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds; an image that takes longer to decode has status undecodable. One that takes the model "
        "longer (or 20 times as long as a usual batch, if that is more) has status unsupported.",
    )
    shape: Annotated[Shape, Lower] = Field(
        default=Shape.AUTO,
        description="fused (decode and label in one actor), two-stage, or auto.",
        json_schema_extra=HIDDEN,
    )
    address: str | None = Field(
        default=None, description="Ray cluster to join. [default: $RAY_ADDRESS, else a local Ray]"
    )
    shared_filesystem: bool = Field(
        default=False, description="All nodes of the cluster see local SOURCE and DEST under the same paths."
    )

    progress: Annotated[Progress, Lower] = Field(
        default=Progress.AUTO, description="How progress is shown: auto, plain or none."
    )

    if not TYPE_CHECKING:  # type checkers take the fields as its arguments

        def __init__(self, **values: object) -> None:
            """Check the settings; an invalid one raises ConfigError, as on the command line."""
            try:
                super().__init__(**values)
            except ValidationError as err:
                raise ConfigError(without_secrets(one_line(err, LabelConfig))) from err

    @model_validator(mode="after")
    def _check(self) -> LabelConfig:
        if self.actors is not None and not 1 <= self.actor_bounds()[0] <= self.actor_bounds()[1]:
            raise ValueError(f"actors must be N or MIN:MAX with 1 <= MIN <= MAX, got {self.actors}")
        if self.embeddings and isinstance(self.device, SimulatedDevice):
            raise ValueError("a simulated device gives no embeddings: choose another device, or no embeddings")
        if self.uri_column is not None and self.image_column is not None:
            raise ValueError("--image-column names a column of images, and --uri-column one of URIs: give one of them")
        if self.append and self.overwrite:
            raise ValueError("--append adds to what --overwrite removes: give one of them")
        if self.part is not None and not 1 <= self.part_of()[0] <= self.part_of()[1]:
            raise ValueError(f"part must be I/N with 1 <= I <= N, got {self.part}")
        if self.append and self.limit is not None:
            raise ValueError("--append labels everything that is new, and cannot be combined with --limit")
        return self

    def actor_bounds(self) -> tuple[int, int]:
        """Return the minimum and maximum number of actors; (0, 0) if `actors` is not set."""
        if self.actors is None:
            return 0, 0
        low, _, high = self.actors.partition(":")
        return int(low), int(high or low)

    def part_of(self) -> tuple[int, int]:
        """Return the number of the part to label, and the number of parts; (1, 1) for all shards."""
        number, _, parts = (self.part or "1/1").partition("/")
        return int(number), int(parts)


def build_config(options: dict[str, Any], config_file: Path | None = None) -> LabelConfig:
    """Merge the options of `label` with those of a YAML file; see `build_settings`."""
    return build_settings(LabelConfig, options, config_file)


def batch_size(config: LabelConfig, choice: DeviceChoice) -> int:
    """Return the configured batch size, or the device's default."""
    if config.batch_size is not None:
        return config.batch_size
    return CPU_BATCH_SIZE if choice.provider is Provider.CPU else GPU_BATCH_SIZE
