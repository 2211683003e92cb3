"""Pod templates of the head and the workers: placement, resources, security and shutdown."""

from __future__ import annotations

from typing import Any

from cluster.manifests.setting_types import Spot
from cluster.manifests.settings import ClusterConfiguration, GpuWorkerSettings, HeadSettings, WorkerSettings

USER_ID = 1000  # `ray` in cluster/Dockerfile
CACHE_PATH = "/cache"
# Ray's sessions and logs, HAProxy's files: everything that is written except models.
TMP_MOUNT: dict[str, Any] = {"name": "tmp", "mountPath": "/tmp"}
TMP_VOLUME: dict[str, Any] = {"name": "tmp", "emptyDir": {}}
KEYS_PATH = "/etc/shardlabel"
METRICS_PORT = 8080
HTTP_PORT = 8000
GRPC_PORT = 9000
INSTANCE_LABEL = "app.kubernetes.io/instance"
# KubeRay's label: head or worker.
NODE_TYPE_LABEL = "ray.io/node-type"
# Labels by which the clouds mark nodes that they may reclaim.
SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# Taints by which GKE and AKS keep ordinary pods off such nodes.
SPOT_TAINTS = {"cloud.google.com/gke-spot": "true", "kubernetes.azure.com/scalesetpriority": "spot"}
# If SIGTERM reaches Ray, it drains for 30 s itself. That comes after our own drain, and would only add time.
AFTER_DRAIN = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
# Time for Ray's own processes to exit, after the drain.
LEAVE_S = 20


def pod_labels(config: ClusterConfiguration) -> dict[str, str]:
    """Return the labels by which the network policy selects this cluster's pods."""
    return {INSTANCE_LABEL: config.name, "app.kubernetes.io/part-of": "shardlabel"}


def head_pod(config: ClusterConfiguration, env: dict[str, str], *, serves: bool) -> dict[str, Any]:
    """Return the pod template of the head: never on a spot node.

    Args:
        config: The settings.
        env: Additional environment variables.
        serves: Whether the cluster is an endpoint: KubeRay takes its services' ports from the head's container.
    """
    container = {
        "name": "ray-head",
        **_image(config, "cpu"),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "metrics", "containerPort": METRICS_PORT},
            *([{"name": "serve", "containerPort": HTTP_PORT}] if serves else []),
        ],
        "env": _env(config, env),
        **_storage(config),
        "resources": _resources(config.head),
        "securityContext": container_security(),
        "volumeMounts": _mounts(config),
    }
    not_spot = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_LABELS.items()]
    spec = {
        **_pod(config),
        **({"nodeSelector": config.head.node_selector} if config.head.node_selector else {}),
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": not_spot}]
                }
            }
        },
        "containers": [container],
        "volumes": _volumes(config),
    }
    return {"metadata": {"labels": pod_labels(config)}, "spec": spec}


def worker_pod(
    config: ClusterConfiguration, group: WorkerSettings, env: dict[str, str], *, serves: bool
) -> dict[str, Any]:
    """Return the pod template of a worker group. A worker that is stopped finishes its work first.

    Args:
        config: The settings.
        group: The group's settings.
        env: Additional environment variables.
        serves: Whether they answer requests. Such workers spread over zones and nodes.
    """
    gpus = group.gpus if isinstance(group, GpuWorkerSettings) else 0
    container = {
        "name": "ray-worker",
        **_image(config, "cuda" if gpus else "cpu"),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "env": _env(config, {**env, **AFTER_DRAIN}),
        **_storage(config),
        "resources": _resources(group, gpus),
        "securityContext": container_security(),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", drain_command(config.drain_s)]}}},
        "volumeMounts": _mounts(config),
    }
    spec = {
        **_pod(config),
        "terminationGracePeriodSeconds": config.drain_s + LEAVE_S,
        **({"serviceAccountName": config.service_account} if config.service_account else {}),
        **({"nodeSelector": group.node_selector} if group.node_selector else {}),
        **_spot(group.spot),
        **_tolerations(group.spot, has_gpus=bool(gpus)),
        **(_spread(config) if serves and config.service.spread else {}),
        "containers": [container],
        "volumes": _volumes(config),
    }
    return {"metadata": {"labels": pod_labels(config)}, "spec": spec}


def drain_command(drain_s: int) -> str:
    """Return the preStop command of a worker: accept no new work, and give running work `drain_s` seconds to finish.

    The raylet exits once it is idle, but `ray start --block` does not, so the hook waits for the raylet itself. When
    the hook ends, Kubernetes stops the container.
    """
    return (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is being stopped'"
        f" --deadline-remaining-seconds {drain_s} || exit 0;"
        f" for second in $(seq {drain_s}); do pgrep -x raylet > /dev/null || exit 0; sleep 1; done"
    )


def container_security(*, writes: bool = False) -> dict[str, Any]:
    """Return the security context of a container.

    Args:
        writes: Whether it may write to its root file system; only for containers that are not ours.
    """
    unprivileged = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return unprivileged if writes else {**unprivileged, "readOnlyRootFilesystem": True}


def pod_security() -> dict[str, Any]:
    """Return the security context of a pod: its user, groups and seccomp profile."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod(config: ClusterConfiguration) -> dict[str, Any]:
    secret = config.image.pull_secret
    return {"securityContext": pod_security(), **({"imagePullSecrets": [{"name": secret}]} if secret else {})}


def _image(config: ClusterConfiguration, device: str) -> dict[str, Any]:
    return {"image": config.image.name(device), "imagePullPolicy": config.image.pull_policy}


def _env(config: ClusterConfiguration, more: dict[str, str]) -> list[dict[str, Any]]:
    env = {"SHARDLABEL_HOME": CACHE_PATH, "RAY_USAGE_STATS_ENABLED": "0", **more}
    if config.model_mirror:
        env["SHARDLABEL_MODEL_MIRROR"] = config.model_mirror
    return [{"name": name, "value": value} for name, value in env.items()]


def _storage(config: ClusterConfiguration) -> dict[str, Any]:
    return {"envFrom": [{"secretRef": {"name": config.storage_secret}}]} if config.storage_secret else {}


def _resources(group: HeadSettings | WorkerSettings, gpus: int = 0) -> dict[str, Any]:
    # Limits equal requests: Ray schedules by the limits, so lower requests would overcommit the node.
    amounts = {"cpu": str(group.cpus), "memory": group.memory, "ephemeral-storage": group.ephemeral_storage}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _mounts(config: ClusterConfiguration) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "models", "mountPath": CACHE_PATH}, TMP_MOUNT]
    if config.service.api_keys_secret:
        mounts.append({"name": "api-keys", "mountPath": KEYS_PATH, "readOnly": True})
    return mounts


def _volumes(config: ClusterConfiguration) -> list[dict[str, Any]]:
    cache: dict[str, Any] = {"emptyDir": {"sizeLimit": config.cache_size}}
    if config.cache_claim:
        cache = {"persistentVolumeClaim": {"claimName": config.cache_claim}}
    if config.cache_host_path:
        # Not DirectoryOrCreate: Kubernetes would create it as root, and no pod could write there.
        cache = {"hostPath": {"path": config.cache_host_path, "type": "Directory"}}
    volumes = [{"name": "models", **cache}, TMP_VOLUME]
    if config.service.api_keys_secret:
        volumes.append({"name": "api-keys", "secret": {"secretName": config.service.api_keys_secret}})
    return volumes


def _spot(spot: Spot) -> dict[str, Any]:
    """Return the affinity for spot nodes: none, preferred or required."""
    terms = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value in SPOT_LABELS.items()
    ]
    if spot in (Spot.REQUIRE, Spot.FIRST):
        rule: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    elif spot is Spot.PREFER:
        weighted = [{"weight": 100, "preference": term} for term in terms]
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": weighted}
    else:
        return {}
    return {"affinity": {"nodeAffinity": rule}}


def _spread(config: ClusterConfiguration) -> dict[str, Any]:
    workers = {INSTANCE_LABEL: config.name, NODE_TYPE_LABEL: "worker"}
    return {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": workers},
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ]
    }


def _tolerations(spot: Spot, *, has_gpus: bool) -> dict[str, Any]:
    tolerations: list[dict[str, Any]] = []
    if has_gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if spot is not Spot.NO:
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in SPOT_TAINTS.items()
        ]
    return {"tolerations": tolerations} if tolerations else {}
