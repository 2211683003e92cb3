"""What a manifest is rendered from: one validated configuration for Kubernetes and for `ray up`."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.config import PrecisionName
from pipeline.storage.uris import has_secrets

# KubeRay appends six characters for the cluster and up to ten for its services, of the 63 that Kubernetes allows.
MAX_NAME_LENGTH = 47
QUANTITY = r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?", re.ASCII)
# The entrypoint of a RayJob is read by two shells, and Kubernetes replaces $(NAME) in it. Quoting survives both, yet
# nothing that labels images needs more than these.
WORD = re.compile(r"[\w@%+=:,./*?{}\[\]~^!&#-]+", re.ASCII)


class Spot(StrEnum):
    """Whether a group of workers runs on nodes that the cloud may take back."""

    NO = "no"
    PREFER = "prefer"
    REQUIRE = "require"


def _is_word(text: str) -> str:
    if text.startswith("-"):
        raise ValueError("must not start with a dash")
    return _is_option(text)


def _is_option(text: str) -> str:
    if not WORD.fullmatch(text):
        raise ValueError("must be one word of letters, digits and @%+=:,./*?{}[]~^!&#-")
    if has_secrets(text.removeprefix("@")):
        raise ValueError("must hold no credentials, which a manifest shows: name a Secret in storage_secret")
    return text


def _is_plain(text: str) -> str:
    if not text.isprintable() or set(text) & set('$`\\"'):
        raise ValueError('must be plain text without $ ` \\ ", which a shell would read')
    return text


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            raise ValueError(f"{key!r}: {value!r} is not a label that Kubernetes takes")
    return labels


Word = Annotated[str, AfterValidator(_is_word)]
Option = Annotated[str, AfterValidator(_is_option)]
PlainText = Annotated[str, AfterValidator(_is_plain)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]
SecretName = Annotated[str, Field(pattern=DNS_NAME, max_length=253)]
Labels = Annotated[dict[str, str], AfterValidator(_are_labels)]


class Settings(BaseModel):
    """Base of all: no unknown key, no change once built."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSettings(Settings):
    """The container image; built by cluster/Dockerfile, one target for each device."""

    repository: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?$")] = Field(
        default="registry.example.com/shardlabel", description="Where the images are, without the tag."
    )
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}$")] = Field(
        default_factory=lambda: f"{version('shardlabel')}-ray{version('ray')}",
        description="Tag without the device, which is appended: -cpu or -cuda.",
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When a node fetches the image."
    )
    pull_secret: SecretName | None = Field(default=None, description="Secret with the registry's credentials.")

    def name(self, device: str) -> str:
        """Return the whole name of the image for a device, cpu or cuda."""
        return f"{self.repository}:{self.tag}-{device}"


class HeadSettings(Settings):
    """The head: Ray's control, and the driver of a run. No task and no actor of a pool runs there, and never on spot."""

    cpus: int = Field(default=3, ge=1, description="CPUs of the head.")
    memory: Quantity = Field(default="12Gi", description="Memory of the head.")
    node_selector: Labels = Field(default={}, description="Labels of the nodes that may carry the head.")


class WorkerSettings(Settings):
    """A group of equal workers."""

    min: int = Field(default=0, ge=0, description="Least workers.")
    max: int = Field(default=8, ge=1, description="Most workers.")
    cpus: int = Field(default=7, ge=1, description="CPUs of each; of eight, leave one to the node's own processes.")
    memory: Quantity = Field(default="26Gi", description="Memory of each.")
    spot: Spot = Field(default=Spot.PREFER, description="Nodes that may be taken back: no, prefer or require.")
    idle_timeout_s: int = Field(
        default=120, ge=10, description="Idle workers above the least are given back after this."
    )
    node_selector: Labels = Field(default={}, description="Labels of the nodes that may carry these workers.")

    @model_validator(mode="after")
    def _check(self) -> WorkerSettings:
        if self.min > self.max:
            raise ValueError(f"min must not be above max, got min={self.min} and max={self.max}")
        return self


class GpuWorkerSettings(WorkerSettings):
    """Workers that hold the model on GPUs."""

    min: int = Field(default=1, ge=0, description="Least workers.")
    max: int = Field(default=4, ge=1, description="Most workers.")
    gpus: int = Field(default=1, ge=1, description="GPUs of each.")


class JobSettings(Settings):
    """A RayJob: one bulk run."""

    source: tuple[Word, ...] = Field(
        default=("s3://my-bucket/images/train-{00000..00999}.tar",), min_length=1, description="SOURCE of `label`."
    )
    output: Word = Field(default="s3://my-bucket/labels", description="DEST of `label`, on shared storage.")
    options: tuple[Option, ...] = Field(default=(), description="More words for `label`, as --top-k,3.")
    retries: int = Field(default=2, ge=0, description="Runs after a failed one, each on a new cluster; they resume.")
    deadline_s: int | None = Field(default=None, ge=1, description="Give up after this many seconds in all.")
    keep_s: int = Field(default=600, ge=0, description="The cluster stays this long after the end, to be looked at.")
    submission: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = Field(
        default="K8sJobMode", description="How KubeRay submits: by a Kubernetes Job, by itself, or beside the head."
    )
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], PlainText] = Field(
        default={"PYTHONUNBUFFERED": "1"}, description="Environment of the driver and the workers. No secrets."
    )


class ServiceSettings(Settings):
    """A RayService: the endpoint."""

    min_replicas: int = Field(default=1, ge=0, description="Least replicas of the model.")
    max_replicas: int = Field(default=4, ge=1, description="Most replicas; must fit the workers.")
    spot: Spot = Field(default=Spot.NO, description="As the workers' spot, which does not count for the endpoint.")
    api_keys_secret: SecretName | None = Field(
        default=None, description="Secret whose key `keys` holds the bearer keys, one a line."
    )
    calibration: Word | None = Field(
        default=None, description="URI of a calibration that `evaluate --fit` wrote, of this model and precision."
    )
    redis_address: Word | None = Field(default=None, description="host:port of a Redis that the head survives with.")
    redis_secret: SecretName | None = Field(default=None, description="Secret whose key `password` is Redis's.")

    @model_validator(mode="after")
    def _check(self) -> ServiceSettings:
        if self.min_replicas > self.max_replicas:
            got = f"got min_replicas={self.min_replicas} and max_replicas={self.max_replicas}"
            raise ValueError(f"min_replicas must not be above max_replicas, {got}")
        return self


class AwsSettings(Settings):
    """What `ray up` starts on AWS."""

    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")] = Field(
        default="us-west-2", description="Region, the one that the images are in."
    )
    zones: Annotated[str, Field(pattern=r"^[a-z0-9-]+(,[a-z0-9-]+)*$")] = Field(
        default="us-west-2a,us-west-2b", description="Availability zones, tried in order."
    )
    head_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="m6i.xlarge", description="Instance type of the head."
    )
    gpu_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="g5.2xlarge", description="Instance type with more than gpu.cpus CPUs, and gpu.gpus GPUs."
    )
    cpu_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="c6i.2xlarge", description="Instance type with more than cpu.cpus CPUs."
    )
    instance_profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@-]+$")] = Field(
        default="shardlabel", description="IAM instance profile that may read the images and write the labels."
    )
    ssh_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] = Field(
        default="ubuntu", description="User of the machine image."
    )
    disk_gb: int = Field(
        default=150, ge=50, description="Disk of each node, GB: images of the container, and spilling."
    )


class ClusterConfiguration(Settings):
    """Everything that `cluster render` can be told."""

    name: Annotated[str, Field(pattern=DNS_LABEL, max_length=MAX_NAME_LENGTH)] = Field(
        default="shardlabel", description="Name of the job, service or cluster."
    )
    namespace: Annotated[str, Field(pattern=DNS_LABEL, max_length=63)] | None = Field(
        default=None, description="Kubernetes namespace; the current one if not given."
    )
    model: Word = Field(default="resnet18-v2", description="Model, a name of `shardlabel models list`.")
    precision: PrecisionName = "auto"
    device: Literal["cpu", "cuda"] = Field(default="cuda", description="Where the model runs; cpu leaves out the GPUs.")
    model_mirror: Word | None = Field(default=None, description="URL that models are downloaded from first.")
    cache_claim: SecretName | None = Field(
        default=None, description="PersistentVolumeClaim for models; otherwise each pod has its own cache."
    )
    cache_size: Quantity = Field(default="5Gi", description="Limit of a pod's own model cache.")
    storage_secret: SecretName | None = Field(
        default=None, description="Secret whose keys are the storage's environment, as AWS_ACCESS_KEY_ID."
    )
    service_account: SecretName | None = Field(
        default=None, description="Service account of the workers, where storage trusts it instead of a secret."
    )
    auth_secret: SecretName | None = Field(
        default=None, description="Secret whose key auth_token is Ray's token; otherwise KubeRay makes one."
    )
    drain_s: int = Field(default=100, ge=10, le=3600, description="A worker that is stopped may finish for this long.")
    network_policy: bool = Field(
        default=True, description="Let only this cluster, KubeRay and monitoring reach the pods' control ports."
    )
    operator_namespace: Annotated[str, Field(pattern=DNS_LABEL, max_length=63)] = Field(
        default="ray-system",
        description="Kubernetes namespace of KubeRay's operator, which alone reaches the dashboard.",
    )
    image: ImageSettings = Field(default_factory=ImageSettings, description="The container image.")
    head: HeadSettings = Field(default_factory=HeadSettings, description="The head.")
    gpu: GpuWorkerSettings = Field(default_factory=GpuWorkerSettings, description="Workers with GPUs: they infer.")
    cpu: WorkerSettings = Field(default_factory=WorkerSettings, description="Workers without: they decode.")
    job: JobSettings = Field(default_factory=JobSettings, description="RayJob.")
    service: ServiceSettings = Field(default_factory=ServiceSettings, description="RayService.")
    aws: AwsSettings = Field(default_factory=AwsSettings, description="`ray up`.")

    @model_validator(mode="after")
    def _check(self) -> ClusterConfiguration:
        if self.device == "cuda" and self.gpu.min < 1:
            raise ValueError(
                "gpu.min must be at least 1 with device=cuda, got 0: a run looks for its GPUs when it starts"
            )
        return self
