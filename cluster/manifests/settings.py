"""The settings of manifests: one validated configuration for Kubernetes and for `ray up`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.manifests.setting_types import (
    CRON,
    DNS_LABEL,
    HOST_PATH,
    OWN_SERVE_OPTIONS,
    Labels,
    LabelText,
    Option,
    PlainText,
    Quantity,
    SecretName,
    ServeOptions,
    Settings,
    Spot,
    Word,
)
from pipeline.config import PrecisionName
from serve.config import ServeConfig

# Kubernetes allows 63 characters. KubeRay appends six for the cluster and up to ten for its services; for the jobs of a
# schedule it inserts a time of up to eleven before these.
MAX_NAME_LENGTH = 47
MAX_SCHEDULED_NAME_LENGTH = 36


class ImageSettings(Settings):
    """The container image, built by cluster/Dockerfile with one target per device."""

    repository: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?$")] = Field(
        default="registry.example.com/shardlabel", description="Repository of the images, without the tag."
    )
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}$")] = Field(
        default_factory=lambda: f"{version('shardlabel')}-ray{version('ray')}",
        description="Tag, to which the device is appended: -cpu or -cuda.",
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When a node pulls the image."
    )
    pull_secret: SecretName | None = Field(default=None, description="Secret with the registry's credentials.")

    def name(self, device: str) -> str:
        """Return the full name of the image for a device, cpu or cuda."""
        return f"{self.repository}:{self.tag}-{device}"


class HeadSettings(Settings):
    """The head: Ray's control processes and the driver of a run, but no tasks or pool actors. Never on a spot node."""

    cpus: int = Field(default=3, ge=1, description="CPUs of the head.")
    memory: Quantity = Field(default="12Gi", description="Memory of the head.")
    ephemeral_storage: Quantity = Field(default="10Gi", description="Disk of the head: logs, and its model cache.")
    node_selector: Labels = Field(default={}, description="Labels of the nodes that may run the head.")


class WorkerSettings(Settings):
    """A group of identical workers."""

    min: int = Field(default=0, ge=0, description="Minimum number of workers.")
    max: int = Field(default=8, ge=1, description="Maximum number of workers.")
    cpus: int = Field(default=7, ge=1, description="CPUs of each; of a node's eight, leave one to its own processes.")
    memory: Quantity = Field(default="26Gi", description="Memory of each.")
    ephemeral_storage: Quantity = Field(default="10Gi", description="Disk of each: logs, and the pod's model cache.")
    spot: Spot = Field(
        default=Spot.PREFER,
        description="Spot nodes: no, prefer, require; or first: a group on spot nodes grows before one on ordinary "
        "nodes, each up to max, and min ordinary workers are always there (KubeRay 1.7).",
    )
    idle_timeout_s: int = Field(
        default=120, ge=10, description="Seconds until idle workers above the minimum are removed."
    )
    node_selector: Labels = Field(default={}, description="Labels of the nodes that may run these workers.")

    @model_validator(mode="after")
    def _check(self) -> WorkerSettings:
        if self.min > self.max:
            raise ValueError(f"min must not be above max, got min={self.min} and max={self.max}")
        return self


class GpuWorkerSettings(WorkerSettings):
    """Workers that hold the model on GPUs."""

    min: int = Field(default=1, ge=0, description="Minimum number of workers.")
    max: int = Field(default=4, ge=1, description="Maximum number of workers.")
    gpus: int = Field(default=1, ge=1, description="GPUs of each.")


class JobSettings(Settings):
    """A RayJob: one bulk run."""

    source: tuple[Word, ...] = Field(
        default=("s3://my-bucket/images/train-{00000..00999}.tar",), min_length=1, description="SOURCE of `label`."
    )
    output: Word = Field(default="s3://my-bucket/labels", description="DEST of `label`, on shared storage.")
    options: tuple[Option, ...] = Field(default=(), description="More arguments of `label`, as --top-k,3.")
    retries: int = Field(default=2, ge=0, description="Retries of a failed run, each on a new cluster; they resume.")
    schedule: Annotated[str, Field(pattern=CRON)] | None = Field(
        default=None,
        description="Cron schedule, as '0 2 * * *': renders a RayCronJob (KubeRay's feature gate RayCronJob), and adds "
        "--append.",
    )
    deadline_s: int | None = Field(default=None, ge=1, description="Give up after this many seconds in total.")
    start_deadline_s: int | None = Field(
        default=None, ge=1, description="Give up if the run has not started after this many seconds (KubeRay 1.6)."
    )
    keep_s: int = Field(default=600, ge=0, description="Seconds that the cluster stays after the end, for inspection.")
    submission: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = Field(
        default="K8sJobMode", description="How KubeRay submits: by a Kubernetes Job, by HTTP, or beside the head."
    )
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], PlainText] = Field(
        default={"PYTHONUNBUFFERED": "1"}, description="Environment of the driver and the workers. No secrets."
    )


class UpgradeSettings(Settings):
    """How a change of the endpoint's pods is rolled out."""

    gateway_class: SecretName | None = Field(
        default=None,
        description="GatewayClass that moves requests to the new cluster step by step (KubeRay 1.7); "
        "without it, all move once the new cluster is ready.",
    )
    step_percent: int = Field(default=10, ge=1, le=100, description="Percentage of requests moved in a step.")
    interval_s: int = Field(default=60, ge=1, description="Seconds between two steps.")
    max_surge_percent: int = Field(default=100, ge=1, le=100, description="Maximum percentage added at once.")

    @model_validator(mode="after")
    def _check(self) -> UpgradeSettings:
        if self.step_percent > self.max_surge_percent:
            raise ValueError(
                "step_percent must not be above max_surge_percent, "
                f"got step_percent={self.step_percent} and max_surge_percent={self.max_surge_percent}"
            )
        return self


class ServiceSettings(Settings):
    """A RayService: the endpoint."""

    min_replicas: int = Field(default=1, ge=0, description="Minimum number of replicas.")
    max_replicas: int = Field(default=4, ge=1, description="Maximum number of replicas; they must fit the workers.")
    spot: Spot = Field(default=Spot.NO, description="Spot nodes for the endpoint; gpu.spot and cpu.spot do not apply.")
    api_keys_secret: SecretName | None = Field(
        default=None, description="Secret whose key `keys` holds the bearer keys, one per line."
    )
    calibration: Word | None = Field(
        default=None, description="URI of a calibration from `evaluate --fit`, for this model and precision."
    )
    redis_address: Word | None = Field(default=None, description="host:port of a Redis, to survive loss of the head.")
    redis_secret: SecretName | None = Field(default=None, description="Secret whose key `password` is that of Redis.")
    options: ServeOptions = Field(
        default={},
        description=f"More options of `serve`, as top_k=3,deadline_s=30: "
        f"{', '.join(name for name in ServeConfig.model_fields if name not in OWN_SERVE_OPTIONS)}.",
    )
    spread: bool = Field(default=True, description="Spread workers over zones and nodes where possible.")
    start_deadline_s: int | None = Field(
        default=None, ge=1, description="Give up if the endpoint is not ready after this many seconds (KubeRay 1.6)."
    )
    upgrade: UpgradeSettings = Field(default_factory=UpgradeSettings, description="Rollout of a change of its pods.")

    @model_validator(mode="after")
    def _check(self) -> ServiceSettings:
        if self.min_replicas > self.max_replicas:
            got = f"got min_replicas={self.min_replicas} and max_replicas={self.max_replicas}"
            raise ValueError(f"min_replicas must not be above max_replicas, {got}")
        return self


class QueueSettings(Settings):
    """The queue of the Kubernetes cluster that a run or an endpoint waits in."""

    scheduler: Literal["kueue", "volcano", "yunikorn"] | None = Field(default=None, description="Its scheduler.")
    name: LabelText | None = Field(default=None, description="Name of the queue; for Kueue, of its LocalQueue.")
    priority: LabelText | None = Field(default=None, description="Priority class in it (Kueue and Volcano).")

    @model_validator(mode="after")
    def _check(self) -> QueueSettings:
        if (self.scheduler is None) != (self.name is None):
            raise ValueError(f"scheduler and name need each other, got scheduler={self.scheduler} and name={self.name}")
        if self.priority and self.scheduler not in ("kueue", "volcano"):
            raise ValueError(f"priority needs scheduler=kueue or volcano, got scheduler={self.scheduler}")
        return self


class AwsSettings(Settings):
    """What `ray up` starts on AWS."""

    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")] = Field(
        default="us-west-2", description="Region; it should hold the input images."
    )
    zones: Annotated[str, Field(pattern=r"^[a-z0-9-]+(,[a-z0-9-]+)*$")] = Field(
        default="us-west-2a,us-west-2b", description="Availability zones, tried in order."
    )
    head_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="m6i.xlarge", description="Instance type of the head."
    )
    gpu_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="g5.2xlarge", description="Instance type with more than gpu.cpus CPUs, and with gpu.gpus GPUs."
    )
    cpu_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = Field(
        default="c6i.2xlarge", description="Instance type with more than cpu.cpus CPUs."
    )
    instance_profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@-]+$")] = Field(
        default="shardlabel", description="IAM instance profile that may read the images and write the labels."
    )
    ssh_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] = Field(
        default="ubuntu", description="SSH user of the machine image."
    )
    disk_gb: int = Field(
        default=150, ge=50, description="Disk of each node in GB: container images, and object spilling."
    )


class ClusterConfiguration(Settings):
    """All settings of `cluster render`."""

    name: Annotated[str, Field(pattern=DNS_LABEL, max_length=MAX_NAME_LENGTH)] = Field(
        default="shardlabel", description="Name of the job, service or cluster."
    )
    namespace: Annotated[str, Field(pattern=DNS_LABEL, max_length=63)] | None = Field(
        default=None, description="Kubernetes namespace; the current one by default."
    )
    model: Word = Field(default="resnet18-v2", description="Name of a model, as in `shardlabel models list`.")
    precision: PrecisionName = "auto"
    device: Literal["cpu", "cuda"] = Field(default="cuda", description="Where the model runs; cpu: no GPU workers.")
    model_mirror: Word | None = Field(default=None, description="URL that models are downloaded from first.")
    cache_claim: SecretName | None = Field(
        default=None, description="PersistentVolumeClaim for models; by default each pod has its own cache."
    )
    cache_host_path: Annotated[str, Field(pattern=HOST_PATH)] | None = Field(
        default=None, description="Folder on each node for models, shared by its pods; user 1000 must own it."
    )
    cache_size: Quantity = Field(default="5Gi", description="Size limit of a pod's own model cache.")
    storage_secret: SecretName | None = Field(
        default=None, description="Secret whose keys are environment variables for storage, as AWS_ACCESS_KEY_ID."
    )
    service_account: SecretName | None = Field(
        default=None, description="Service account of the workers, if it gives access to storage without a secret."
    )
    auth_secret: SecretName | None = Field(
        default=None, description="Secret whose key auth_token is Ray's token; by default KubeRay makes one."
    )
    drain_s: int = Field(default=100, ge=10, le=3600, description="Seconds a stopped worker has to finish its work.")
    autoscaling: bool = Field(
        default=True, description="Groups grow and shrink between min and max; if false, they have max workers."
    )
    disruption_budget: bool = Field(
        default=True, description="A node drain waits for a run's head, and takes the endpoint's workers one by one."
    )
    network_policy: bool = Field(
        default=True, description="Let only this cluster, KubeRay and monitoring reach the pods' control ports."
    )
    operator_namespace: Annotated[str, Field(pattern=DNS_LABEL, max_length=63)] = Field(
        default="ray-system",
        description="Kubernetes namespace of KubeRay's operator; only the operator reaches the dashboard.",
    )
    image: ImageSettings = Field(default_factory=ImageSettings, description="The container image.")
    head: HeadSettings = Field(default_factory=HeadSettings, description="The head.")
    gpu: GpuWorkerSettings = Field(default_factory=GpuWorkerSettings, description="Workers with GPUs: run the model.")
    cpu: WorkerSettings = Field(default_factory=WorkerSettings, description="Workers without GPUs: decode.")
    job: JobSettings = Field(default_factory=JobSettings, description="RayJob.")
    service: ServiceSettings = Field(default_factory=ServiceSettings, description="RayService.")
    queue: QueueSettings = Field(default_factory=QueueSettings, description="A queue of the Kubernetes cluster.")
    aws: AwsSettings = Field(default_factory=AwsSettings, description="`ray up`.")

    @model_validator(mode="after")
    def _check(self) -> ClusterConfiguration:
        if self.device == "cuda" and self.gpu.min < 1:
            raise ValueError("gpu.min must be at least 1 with device=cuda, got 0: a run counts its GPUs when it starts")
        if not self.autoscaling and Spot.FIRST in (self.gpu.spot, self.cpu.spot, self.service.spot):
            raise ValueError("spot=first needs autoscaling=true to grow one group before the other, got false")
        if not self.autoscaling and self.service.upgrade.gateway_class:
            raise ValueError("service.upgrade.gateway_class needs autoscaling=true, got false: KubeRay refuses it")
        if self.cache_claim and self.cache_host_path:
            raise ValueError("cache_claim and cache_host_path are two places for models; give only one")
        if self.job.schedule and len(self.name) > MAX_SCHEDULED_NAME_LENGTH:
            got = f"{len(self.name)}: {self.name!r}"
            raise ValueError(
                f"name must have at most {MAX_SCHEDULED_NAME_LENGTH} characters with job.schedule, got {got}"
            )
        if self.job.schedule and self.queue.scheduler:
            raise ValueError(
                "job.schedule and queue.scheduler exclude each other: KubeRay gives the jobs of a schedule no labels"
            )
        return self
