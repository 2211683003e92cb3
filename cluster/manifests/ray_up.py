"""A Ray cluster on AWS by `ray up`: without Kubernetes, with the same image, and used through `shardlabel submit`."""

from __future__ import annotations

from typing import Any

from cluster.manifests.raycluster import worker_groups
from cluster.manifests.setting_types import Spot
from cluster.manifests.settings import ClusterConfiguration, GpuWorkerSettings, WorkerSettings

TOKEN_IN_CONTAINER = "/home/ray/.ray/auth_token"


def ray_up(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the cluster file. The dashboard listens on the head's loopback; `ray dashboard` tunnels to it."""
    groups = worker_groups(config)
    types = {"head": {"resources": {"CPU": 0}, "node_config": _instance(config, config.aws.head_type, Spot.NO)}}
    types |= {name: _workers(config, group) for name, group in groups.items()}
    start = "ulimit -n 65536; ray start"
    return {
        "cluster_name": config.name,
        "max_workers": sum(group.max for group in groups.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": max(1, round(max(group.idle_timeout_s for group in groups.values()) / 60)),
        "docker": {
            "image": config.image.name("cpu"),
            "container_name": "shardlabel",
            "pull_before_run": True,
            # Every Ray process in the container asks for the token, also one that a user starts.
            "run_options": ["--env=RAY_AUTH_MODE=token", "--env=RAY_USAGE_STATS_ENABLED=0", "--ulimit=nofile=65536"],
        },
        "provider": {
            "type": "aws",
            "region": config.aws.region,
            "availability_zone": config.aws.zones,
            "cache_stopped_nodes": False,
        },
        "auth": {"ssh_user": config.aws.ssh_user},
        "head_node_type": "head",
        "available_node_types": types,
        "file_mounts": {TOKEN_IN_CONTAINER: "~/.ray/auth_token"},
        "cluster_synced_files": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --object-manager-port=8076 --dashboard-host=127.0.0.1"
            " --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{start} --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }


def _workers(config: ClusterConfiguration, group: WorkerSettings) -> dict[str, Any]:
    is_gpu = isinstance(group, GpuWorkerSettings)
    resources = {"CPU": group.cpus}
    if isinstance(group, GpuWorkerSettings):
        resources["GPU"] = group.gpus
    return {
        "min_workers": group.min,
        "max_workers": group.max,
        "resources": resources,
        **({"docker": {"worker_image": config.image.name("cuda")}} if is_gpu else {}),
        "node_config": _instance(config, config.aws.gpu_type if is_gpu else config.aws.cpu_type, group.spot),
    }


def _instance(config: ClusterConfiguration, kind: str, spot: Spot) -> dict[str, Any]:
    """Return the EC2 configuration of a node. `prefer` means spot here: EC2 starts either one kind or the other."""
    return {
        "InstanceType": kind,
        "IamInstanceProfile": {"Name": config.aws.instance_profile},
        # Version 2 only. Containers need the second hop.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/sda1",
                "Ebs": {"VolumeSize": config.aws.disk_gb, "VolumeType": "gp3", "Encrypted": True},
            }
        ],
        **({"InstanceMarketOptions": {"MarketType": "spot"}} if spot is not Spot.NO else {}),
    }
