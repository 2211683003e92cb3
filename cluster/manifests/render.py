"""Render manifests as text, from one validated configuration."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from cluster.manifests.budget import head_budget, worker_budget
from cluster.manifests.network import network_policy
from cluster.manifests.ray_up import ray_up
from cluster.manifests.rayjob import rayjob
from cluster.manifests.rayservice import endpoint_groups, grpc_service, rayservice
from cluster.manifests.settings import ClusterConfiguration
from cluster.manifests.yaml_text import dump


class Target(StrEnum):
    """A kind of manifest."""

    RAYJOB = "rayjob"
    RAYSERVICE = "rayservice"
    RAY_UP = "ray-up"


def render(target: Target, config: ClusterConfiguration) -> str:
    """Return a manifest as YAML. The same configuration gives the same bytes."""
    return _HEADERS[target] + "---\n".join(dump(document) for document in _DOCUMENTS[target](config))


def _rayjob(config: ClusterConfiguration) -> list[dict[str, Any]]:
    policy = [network_policy(config)] if config.network_policy else []
    budget = [head_budget(config)] if config.disruption_budget else []
    return [*policy, *budget, rayjob(config)]


def _rayservice(config: ClusterConfiguration) -> list[dict[str, Any]]:
    policy = [network_policy(config, serves=True)] if config.network_policy else []
    least = sum(group.min for group in endpoint_groups(config).values())
    budget = [worker_budget(config, least)] if config.disruption_budget and least > 1 else []
    return [*policy, *budget, grpc_service(config), rayservice(config)]


_DOCUMENTS: dict[Target, Callable[[ClusterConfiguration], list[dict[str, Any]]]] = {
    Target.RAYJOB: _rayjob,
    Target.RAYSERVICE: _rayservice,
    Target.RAY_UP: lambda config: [ray_up(config)],
}
_HEADERS = {
    Target.RAYJOB: """\
# Bulk labelling as a KubeRay RayJob: docs/kuberay.md. Rendered by `shardlabel cluster render rayjob`. Change settings
# (--list-settings) rather than this file, and check your changes with `shardlabel cluster validate`.
#
# The dashboard listens on the head pod's address, because KubeRay polls it for the state. It has no port outside the
# Kubernetes cluster and asks for the token, and the network policy admits only KubeRay and these pods.
""",
    Target.RAYSERVICE: """\
# The endpoint as a KubeRay RayService: docs/kuberay.md. Rendered by `shardlabel cluster render rayservice`. Change its
# settings (--list-settings) rather than this file, and check your changes with `shardlabel cluster validate`.
#
# The dashboard listens on the head pod's address, because KubeRay polls it for the state. It has no port outside the
# Kubernetes cluster and asks for the token, and the network policy admits only KubeRay and these pods.
""",
    Target.RAY_UP: """\
# A Ray cluster on AWS: docs/kuberay.md, "Without Kubernetes". Rendered by `shardlabel cluster render ray-up`. Run once:
#   ray get-auth-token --generate      # the token that every node and every client needs, in ~/.ray/auth_token
# Then: ray up cluster/ray-up.yaml; ray dashboard cluster/ray-up.yaml (a tunnel: no port is open to the network).
""",
}
