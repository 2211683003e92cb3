"""The endpoint as a KubeRay RayService."""

from __future__ import annotations

from typing import Any

from cluster.manifests.pods import GRPC_PORT, HTTP_PORT, INSTANCE_LABEL, KEYS_PATH, pod_labels
from cluster.manifests.raycluster import metadata, queued_metadata, ray_cluster, worker_groups
from cluster.manifests.settings import ClusterConfiguration, GpuWorkerSettings, UpgradeSettings, WorkerSettings
from cluster.manifests.yaml_text import dump
from models.errors import ConfigError
from serve.config import MAX_REPLICA_CPUS, ServeConfig
from serve.environment import GRPC_SERVICER, of_every_node, of_haproxy

# Its path in the image of cluster/Dockerfile.
LAUNCHER = "/opt/shardlabel/bin/shardlabel-haproxy"


def rayservice(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the RayService. An application change is applied in place, a change of the pods by a new cluster."""
    served = ServeConfig.model_validate(_args(config))
    env = of_every_node(served) | of_haproxy(served, LAUNCHER)
    cluster = ray_cluster(config, endpoint_groups(config), env=env, serves=True)
    if config.service.redis_address:
        cluster["gcsFaultToleranceOptions"] = _redis(config)
    deadline_s = config.service.start_deadline_s
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": queued_metadata(config, {"ray.io/initializing-timeout": str(deadline_s)} if deadline_s else None),
        "spec": {
            "upgradeStrategy": _upgrade(config.service.upgrade),
            # The head has no replica, and no CPU for requests.
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": dump(serve_config(config)),
            "rayClusterConfig": cluster,
        },
    }


def grpc_service(config: ClusterConfiguration) -> dict[str, Any]:
    """Return a Service for gRPC: KubeRay's own has only the HTTP port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata(config), "name": f"{config.name}-grpc", "labels": pod_labels(config)},
        "spec": {
            "type": "ClusterIP",
            # KubeRay sets the second label on pods whose Serve answers.
            "selector": {INSTANCE_LABEL: config.name, "ray.io/serve": "true"},
            "ports": [{"name": "grpc", "protocol": "TCP", "port": GRPC_PORT, "targetPort": GRPC_PORT}],
        },
    }


def serve_config(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the configuration of Ray Serve."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT, "keep_alive_timeout_s": 75},
        "grpc_options": {"port": GRPC_PORT, "grpc_servicer_functions": [GRPC_SERVICER]},
        "logging_config": {"enable_access_log": False},
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
        "replica_cpus": replica_cpus(config),
        "min_replicas": config.service.min_replicas,
        "max_replicas": config.service.max_replicas,
    }
    if config.service.calibration:
        args["calibration"] = config.service.calibration
    if config.service.api_keys_secret:
        args["api_keys_file"] = f"{KEYS_PATH}/keys"
    return {**args, **config.service.options}


def replica_cpus(config: ClusterConfiguration) -> int:
    """Return the CPUs of a replica: as given, else on a GPU its share of the worker's, which decode for it, else 1."""
    given = config.service.options.get("replica_cpus")
    if given or config.device != "cuda":
        return int(given or 1)
    per_gpu = config.gpu.cpus // config.gpu.gpus
    return min(max(1, int(per_gpu * _gpu_share(config))), MAX_REPLICA_CPUS)


def _gpu_share(config: ClusterConfiguration) -> float:
    return float(config.service.options.get("gpus_per_replica") or 1)


def _upgrade(upgrade: UpgradeSettings) -> dict[str, Any]:
    if upgrade.gateway_class is None:
        return {"type": "NewCluster"}
    return {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": upgrade.gateway_class,
            "stepSizePercent": upgrade.step_percent,
            "intervalSeconds": upgrade.interval_s,
            "maxSurgePercent": upgrade.max_surge_percent,
        },
    }


def endpoint_groups(config: ClusterConfiguration) -> dict[str, WorkerSettings]:
    """Return the single group that replicas run in: a replica decodes on the node of its GPU.

    The endpoint starts only if `min_replicas` fit the existing workers, so the group's minimum is raised to hold them.

    Raises:
        ConfigError: A replica does not fit a worker.
    """
    name, group = next(iter(worker_groups(config).items()))
    per_worker = group.cpus // replica_cpus(config)
    if isinstance(group, GpuWorkerSettings):
        per_worker = min(int(group.gpus / _gpu_share(config) + 1e-9), per_worker)
    if per_worker == 0:
        raise ConfigError(
            f"service.options: a replica of replica_cpus={replica_cpus(config)} does not fit a worker of {group.cpus} CPUs"
        )
    least = max(group.min, -(-max(1, config.service.min_replicas) // per_worker))
    changes = {"spot": config.service.spot, "min": least, "max": max(group.max, least)}
    return {name: group.model_copy(update=changes)}


def _redis(config: ClusterConfiguration) -> dict[str, Any]:
    options: dict[str, Any] = {"redisAddress": config.service.redis_address}
    if config.service.redis_secret:
        reference = {"secretKeyRef": {"name": config.service.redis_secret, "key": "password"}}
        options["redisPassword"] = {"valueFrom": reference}
    return options
