"""The endpoint as a KubeRay RayService."""

from __future__ import annotations

from typing import Any

from cluster.configuration import ClusterConfiguration, WorkerSettings
from cluster.render_pods import KEYS_PATH
from cluster.render_raycluster import metadata, ray_cluster, worker_groups
from cluster.render_yaml import dump

# The Python proxy doubles what a request costs: docs/decisions.md. Needed on every node before Ray starts.
SERVE_ENV = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def rayservice(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the RayService: a change of the application is made in place, one of the pods by a new cluster."""
    cluster = ray_cluster(config, _groups(config), env=SERVE_ENV)
    if config.service.redis_address:
        cluster["gcsFaultToleranceOptions"] = _redis(config)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(config),
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            # The head has no replica and no CPU for requests.
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": dump(serve_config(config)),
            "rayClusterConfig": cluster,
        },
    }


def serve_config(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the configuration of Ray Serve."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "shardlabel",
                "route_prefix": "/",
                "import_path": "serve.app:build_app",
                "args": _args(config),
            }
        ],
    }


def _args(config: ClusterConfiguration) -> dict[str, Any]:
    args: dict[str, Any] = {
        "model": config.model,
        "precision": config.precision,
        "device": config.device,
        # All CPUs of a worker, shared among its GPUs, decode for them.
        "replica_cpus": max(1, config.gpu.cpus // config.gpu.gpus) if config.device == "cuda" else 1,
        "min_replicas": config.service.min_replicas,
        "max_replicas": config.service.max_replicas,
    }
    if config.service.api_keys_secret:
        args["api_keys_file"] = f"{KEYS_PATH}/keys"
    return args


def _groups(config: ClusterConfiguration) -> dict[str, WorkerSettings]:
    """Return the one group that replicas run in: a replica decodes beside its own GPU."""
    name, group = next(iter(worker_groups(config).items()))
    return {name: group.model_copy(update={"spot": config.service.spot})}


def _redis(config: ClusterConfiguration) -> dict[str, Any]:
    options: dict[str, Any] = {"redisAddress": config.service.redis_address}
    if config.service.redis_secret:
        reference = {"secretKeyRef": {"name": config.service.redis_secret, "key": "password"}}
        options["redisPassword"] = {"valueFrom": reference}
    return options
