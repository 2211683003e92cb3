"""The Ray cluster inside a RayJob or a RayService."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from cluster.manifests.pods import METRICS_PORT, head_pod, worker_pod
from cluster.manifests.settings import ClusterConfiguration, WorkerSettings


def ray_cluster(
    config: ClusterConfiguration,
    groups: dict[str, WorkerSettings],
    *,
    env: dict[str, str] | None = None,
    serves: bool = False,
) -> dict[str, Any]:
    """Return the specification of the cluster.

    Args:
        config: What was asked for.
        groups: Of workers, by name.
        env: More environment of every container.
        serves: Whether it is an endpoint.
    """
    auth: dict[str, Any] = {"mode": "token"}
    if config.auth_secret:
        auth["secretName"] = config.auth_secret
    return {
        "rayVersion": version("ray"),
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "resources": {
                "requests": {"cpu": "500m", "memory": "512Mi"},
                "limits": {"cpu": "500m", "memory": "512Mi"},
            },
        },
        "headGroupSpec": {
            # KubeRay itself sets dashboard-host: it asks the dashboard from its own pod, and with loopback alone a
            # RayJob would wait for ever.
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "metrics-export-port": str(METRICS_PORT)},
            "template": head_pod(config, env or {}, serves=serves),
        },
        "workerGroupSpecs": [_group(config, name, group, env or {}) for name, group in groups.items()],
    }


def worker_groups(config: ClusterConfiguration) -> dict[str, WorkerSettings]:
    """Return the groups by name: those with GPUs only where the model runs on GPUs."""
    if config.device == "cpu":
        # Nothing would start in a cluster of none.
        least = max(1, config.cpu.min)
        return {"cpu": config.cpu.model_copy(update={"min": least, "max": max(least, config.cpu.max)})}
    return {"gpu": config.gpu, "cpu": config.cpu}


def _group(config: ClusterConfiguration, name: str, group: WorkerSettings, env: dict[str, str]) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "idleTimeoutSeconds": group.idle_timeout_s,
        "rayStartParams": {"metrics-export-port": str(METRICS_PORT)},
        "template": worker_pod(config, group, env),
    }


def metadata(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the name and, where one was given, the namespace."""
    return {"name": config.name, **({"namespace": config.namespace} if config.namespace else {})}
