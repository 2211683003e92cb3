"""How much of a cluster may go at once when a node is emptied for an upgrade, or to save one."""

from __future__ import annotations

from typing import Any

from cluster.manifests.pods import INSTANCE_LABEL, NODE_TYPE_LABEL, pod_labels
from cluster.manifests.raycluster import metadata
from cluster.manifests.settings import ClusterConfiguration


def head_budget(config: ClusterConfiguration) -> dict[str, Any]:
    """Return what has an emptied node wait for the end of a run: with the head the whole cluster would go."""
    return _budget(config, "head", 1)


def worker_budget(config: ClusterConfiguration, least: int) -> dict[str, Any]:
    """Return what has the endpoint's workers leave one after the other.

    Args:
        config: What was asked for.
        least: How many workers there are, above one: a single one could never leave.
    """
    return _budget(config, "worker", least - 1)


def _budget(config: ClusterConfiguration, node_type: str, least: int) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**metadata(config), "name": f"{config.name}-{node_type}", "labels": pod_labels(config)},
        "spec": {
            # A number, and of those that stay: all that Kubernetes takes for pods of a kind it does not know.
            "minAvailable": least,
            "selector": {"matchLabels": {INSTANCE_LABEL: config.name, NODE_TYPE_LABEL: node_type}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
