"""Settings of the endpoint, checked where text comes in: the command line, `serve run` and the YAML of `serve deploy`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.catalog import DEFAULT_MODEL
from models.decode.mode import DecodeMode
from models.device import Device
from models.errors import ConfigError
from pipeline.config import DEVICES, CalibrationFile, Decoding, LabelConfig, Lower, PrecisionName

APP_NAME = "shardlabel"
DEPLOYMENT_NAME = "Classifier"
# Beyond this a batch only adds waiting: see docs/decisions-archive.md, "The pulling batcher".
CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32
# Images that may wait per replica: a second or two of work on one core, and several batches on a GPU.
MIN_QUEUE = 128
QUEUE_BATCHES = 8
# What an endpoint takes of a cluster that others use too, however large that is, unless it is told.
SHARED_REPLICAS = 8
MAX_GPU_CPUS = 8  # of a replica with a GPU, which decode for it
MAX_REPLICA_CPUS = 256


def _absolute(location: str | None) -> str | None:
    return location if location is None or "://" in location else str(Path(location).absolute())


# A replica's working folder is not the caller's.
Location = Annotated[str, AfterValidator(_absolute)]
File = Annotated[Path | None, AfterValidator(lambda path: path and path.absolute())]
LogFile = Annotated[str, AfterValidator(lambda target: target if target in ("off", "-") else _absolute(target))]
# Models that may be loaded by request beside those that the endpoint starts with, in the reckoning of requests.
MORE_MODELS = 8


def _names(value: object) -> object:
    """Take one name, several with commas between them (`serve run model=A,B`), or a list."""
    names = value.split(",") if isinstance(value, str) else value
    return tuple(map(str, names if isinstance(names, list | tuple) else [names]))


ModelNames = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]


class ServeConfig(BaseModel):
    """Everything the endpoint can be told. The same names, with dashes, are options of `shardlabel serve`."""

    # Built when first used: the command line wants only the names and descriptions.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    model: ModelNames = Field(
        default=(DEFAULT_MODEL,),
        description="A name of `shardlabel models list`, or an .onnx file; may be given again: the first answers where "
        f"a request names none. [default: {DEFAULT_MODEL}]",
    )
    model_control: Annotated[Literal["none", "explicit"], Lower] = Field(
        default="none", description="none, or explicit: requests may load and unload models."
    )
    precision: PrecisionName = "auto"
    device: Annotated[Device, Lower] = Field(default=Device.AUTO, description=DEVICES)
    decode: Decoding = DecodeMode.FAST
    top_k: int = Field(default=5, ge=1, le=10_000, description="Labels per image where a request names no number.")
    calibration: Annotated[CalibrationFile, AfterValidator(_absolute)] = None

    batch_size: int | None = Field(
        default=None, ge=1, le=1024, description="Most images of one inference. [default: 8 on a CPU, 32 on a GPU]"
    )
    max_batch_delay_ms: float = Field(
        default=0.0, ge=0, le=10_000, description="How long a free model waits for more images."
    )
    replica_cpus: int | None = Field(
        default=None, ge=1, le=MAX_REPLICA_CPUS, description="CPUs and threads of one. [default: 1; with a GPU up to 8]"
    )
    gpus_per_replica: float | None = Field(
        default=None, gt=0, le=1, description="Share of a GPU of each replica: 0.5 puts two on one. [default: 1]"
    )
    min_replicas: int = Field(
        default=1, ge=0, le=10_000, description="Fewest replicas; with 0 none runs while there are no requests."
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Most replicas under load. [default: as fit; on a joined cluster one less, at most 8]",
    )
    target_ongoing_requests: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Open requests per replica beyond which one is added. [default: 2 per CPU; with a GPU 2 batches]",
    )
    upscale_delay_s: float = Field(
        default=2.0, ge=0, le=3600, description="How long there must be more of them before a replica is added."
    )
    downscale_delay_s: float = Field(
        default=30.0, ge=0, le=86_400, description="How long there must be fewer before one is taken away."
    )

    max_queue: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Most images that wait in a replica for a model; more are answered 503. [default: 128 or more]",
    )
    deadline_s: float = Field(default=10.0, gt=0, le=3600, description="Seconds until a request is answered 504.")
    max_request_bytes: int = Field(
        default=20 * 2**20, ge=1, description="Most bytes of a body, as sent and unpacked; more are answered 413."
    )
    max_body_memory: int = Field(
        default=192 * 2**20, ge=1, description="Most bytes of all bodies in a replica; more are answered 503."
    )
    max_pixels: int = Field(default=100_000_000, ge=1, description="Most pixels of an image; more are answered 413.")
    max_images: int = Field(default=64, ge=1, le=10_000, description="Most images of a request; more are answered 413.")
    api_keys_file: File = Field(
        default=None, description="File of bearer keys, one a line; clients must send one. [default: all are served]"
    )
    access_log: LogFile = Field(
        default="off", description="File for a JSON line per request, or off; with `serve run` also -, its output."
    )
    prediction_log: Location | None = Field(
        default=None, description="Folder or URI for answers, as Parquet for `report` and `diff`. [default: none]"
    )
    baseline: Location | None = Field(
        default=None, description="Output of `label`, or a prediction log, to measure drift from. [default: none]"
    )

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        if self.max_replicas is not None and self.max_replicas < max(1, self.min_replicas):
            raise ValueError(
                f"max_replicas must be at least min_replicas ({self.min_replicas}) and 1, got {self.max_replicas}"
            )
        least = max(self.max_images, self.batch_size or 1)
        if self.max_queue is not None and self.max_queue < least:
            raise ValueError(
                f"max_queue must hold {least} images, one whole request (max_images) and one whole batch (batch_size), "
                f"got {self.max_queue}: raise it, or lower these"
            )
        if self.max_body_memory < 3 * self.max_request_bytes:
            raise ValueError(
                f"max_body_memory ({self.max_body_memory} bytes) must hold one request of max_request_bytes "
                f"({self.max_request_bytes}) three times: as it came, parsed, and its images"
            )
        if self.max_batch_delay_ms >= 1000 * self.deadline_s:
            raise ValueError(
                f"max_batch_delay_ms ({self.max_batch_delay_ms:g}) must be below the deadline "
                f"({1000 * self.deadline_s:g} ms), or requests expire while the model waits for more"
            )
        return self


class ServeOptions(ServeConfig):
    """All that `shardlabel serve` can be told: of an endpoint that it starts itself, also where that listens."""

    GROUPS: ClassVar[Mapping[str, str]] = {  # where a group of options begins, in `--help`
        "model": "Model",
        "batch_size": "Replicas",
        "max_queue": "Limits",
        "api_keys_file": "Access and logs",
        "host": "Network and cluster",
    }

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all of this machine.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port of HTTP.")
    grpc_port: int = Field(default=9000, ge=0, le=65535, description="Port of gRPC; 0 for none.")
    haproxy: bool = Field(default=True, description="Put HAProxy before the replicas, where the platform has it.")
    tls_cert: File = Field(
        default=None, description="File of the certificate and its chain, PEM; both ports then speak TLS only."
    )
    tls_key: File = Field(default=None, description="File of its private key, PEM.")
    address: str | None = Field(
        default_factory=lambda: os.environ.get("RAY_ADDRESS") or None,
        description=LabelConfig.model_fields["address"].description,
    )

    @model_validator(mode="after")
    def _check_network(self) -> ServeOptions:
        if self.access_log == "-":
            raise ValueError("--access-log must be off or a file: replicas have no terminal of their own")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both, or neither")
        if self.tls_cert is not None and self.address is not None:
            raise ValueError(
                "--tls-cert has no effect on a cluster, where each node's HAProxy has its own: set SHARDLABEL_TLS_CERT and "
                "SHARDLABEL_TLS_KEY on every node before `ray start` (docs/serving.md, TLS)"
            )
        if self.tls_cert is not None and not self.haproxy:
            raise ValueError("--tls-cert needs HAProxy: Serve's own gRPC proxy has no TLS; leave out --no-haproxy")
        return self

    @property
    def url(self) -> str:
        """Return where a client of this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


class Plan(BaseModel):
    """What one replica is made of, all derived from its batch size and CPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(description="Most images of one inference.")
    workers: int = Field(description="Threads that run the model.")
    decoders: int = Field(description="Threads that only decode; 0: each worker decodes what it runs.")
    max_queue: int = Field(description="Images that may wait.")
    max_ongoing: int = Field(description="Requests that Serve lets in; above what the queue answers 503 to.")
    target_ongoing: float = Field(description="Requests per replica that autoscaling aims at.")
    cpus: int
    gpus: float


def plan_replica(config: ServeConfig, *, on_gpu: bool, cpus: int) -> Plan:
    """Derive a replica from the configuration; one on a GPU decodes on up to 8 of the CPUs of its machine.

    Each model has a queue and threads of its own. The threads of all models share the replica's CPUs.

    Raises:
        ConfigError: It is to have a share of a GPU, and runs on the CPU.
    """
    if not on_gpu and config.gpus_per_replica is not None:
        raise ConfigError("--gpus-per-replica is for a GPU, and the model runs on the CPU; leave it out")
    gpus = config.gpus_per_replica or 1.0
    batch_size = config.batch_size or (GPU_BATCH_SIZE if on_gpu else CPU_BATCH_SIZE)
    replica_cpus = config.replica_cpus or (max(1, min(MAX_GPU_CPUS, int(cpus * gpus))) if on_gpu else 1)
    max_queue = config.max_queue or max(MIN_QUEUE, QUEUE_BATCHES * batch_size, config.max_images)
    workers = 1 if on_gpu else replica_cpus
    models = len(config.model) + (MORE_MODELS if config.model_control == "explicit" else 0)
    return Plan(
        batch_size=batch_size,
        workers=workers,
        decoders=replica_cpus if on_gpu else 0,
        max_queue=max_queue,
        # Serve's own limit must never be the one that answers: its refusals are no JSON.
        max_ongoing=models * (2 * max_queue + 2 * batch_size * workers) + 64,
        # One piece of work that runs and one that waits. On a GPU that is a batch, which could never fill with less; on
        # a CPU an image, since there a batch is no faster than its images, and a core that idles is.
        target_ongoing=config.target_ongoing_requests or 2.0 * (batch_size if on_gpu else 1) * workers,
        cpus=replica_cpus,
        gpus=gpus if on_gpu else 0.0,
    )
