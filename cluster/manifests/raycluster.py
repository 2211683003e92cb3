"""The Ray cluster inside a RayJob or a RayService."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from cluster.manifests.pods import METRICS_PORT, container_security, head_pod, worker_pod
from cluster.manifests.setting_types import Spot
from cluster.manifests.settings import ClusterConfiguration, WorkerSettings

# Priority of the group that grows first; KubeRay's default is 0.
FIRST_PRIORITY = 10


def ray_cluster(
    config: ClusterConfiguration,
    groups: dict[str, WorkerSettings],
    *,
    env: dict[str, str] | None = None,
    serves: bool = False,
) -> dict[str, Any]:
    """Return the specification of the cluster.

    Args:
        config: The settings.
        groups: Worker groups by name.
        env: Additional environment variables of every container.
        serves: Whether the cluster is an endpoint.
    """
    auth: dict[str, Any] = {"mode": "token"}
    if config.auth_secret:
        auth["secretName"] = config.auth_secret
    return {
        "rayVersion": version("ray"),
        "authOptions": auth,
        **(_autoscaler() if config.autoscaling else {}),
        "headGroupSpec": {
            # KubeRay sets dashboard-host itself: its own pod polls the dashboard, and with loopback only, a RayJob
            # would wait forever.
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "metrics-export-port": str(METRICS_PORT)},
            "template": head_pod(config, env or {}, serves=serves),
        },
        "workerGroupSpecs": [
            _group(config, name, group, env or {}, serves=serves) for name, group in _by_priority(groups)
        ],
    }


def _autoscaler() -> dict[str, Any]:
    amounts = {"cpu": "500m", "memory": "512Mi"}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "resources": {"requests": dict(amounts), "limits": dict(amounts)},
            "securityContext": container_security(writes=True),
        },
    }


def _by_priority(groups: dict[str, WorkerSettings]) -> Iterator[tuple[str, WorkerSettings]]:
    """Yield the groups. `spot=first` makes two: a spot group that grows first, and `min` workers on ordinary nodes."""
    for name, group in groups.items():
        if group.spot is Spot.FIRST:
            yield f"{name}-spot", group.model_copy(update={"min": 0})
            yield name, group.model_copy(update={"spot": Spot.NO})
        else:
            yield name, group


def worker_groups(config: ClusterConfiguration) -> dict[str, WorkerSettings]:
    """Return the groups by name; GPU workers only if the model runs on GPUs."""
    if config.device == "cpu":
        # Without a worker nothing would start.
        least = max(1, config.cpu.min)
        return {"cpu": config.cpu.model_copy(update={"min": least, "max": max(least, config.cpu.max)})}
    return {"gpu": config.gpu, "cpu": config.cpu}


def _group(
    config: ClusterConfiguration, name: str, group: WorkerSettings, env: dict[str, str], *, serves: bool
) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": group.min if config.autoscaling else group.max,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        **({"idleTimeoutSeconds": group.idle_timeout_s} if config.autoscaling else {}),
        **({"priority": FIRST_PRIORITY} if group.spot is Spot.FIRST else {}),
        "rayStartParams": {"metrics-export-port": str(METRICS_PORT)},
        "template": worker_pod(config, group, env, serves=serves),
    }


def metadata(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the name and, if one was given, the namespace."""
    return {"name": config.name, **({"namespace": config.namespace} if config.namespace else {})}


def queued_metadata(config: ClusterConfiguration, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the metadata of a resource with its queue labels, which KubeRay copies to the cluster and its pods.

    Args:
        config: The settings.
        annotations: Additional annotations.
    """
    labels, notes = {}, dict(annotations or {})
    queue, priority = config.queue.name, config.queue.priority
    if config.queue.scheduler == "kueue":
        labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}
        # Kueue admits a cluster with autoscaling only with this annotation.
        notes |= {"kueue.x-k8s.io/elastic-job": "true"} if config.autoscaling else {}
    elif config.queue.scheduler == "volcano":
        labels = {"volcano.sh/queue-name": queue, "ray.io/priority-class-name": priority}
    elif config.queue.scheduler == "yunikorn":
        labels = {"yunikorn.apache.org/app-id": config.name, "yunikorn.apache.org/queue": queue}
    given = {key: value for key, value in labels.items() if value}
    return {
        **metadata(config),
        **({"labels": given} if given else {}),
        **({"annotations": notes} if notes else {}),
    }
