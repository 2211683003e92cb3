"""Pod disruption budgets: how many pods may go at once when a node is drained for an upgrade, or to save one."""

from __future__ import annotations

from typing import Any

from cluster.manifests.pods import INSTANCE_LABEL, NODE_TYPE_LABEL, pod_labels
from cluster.manifests.raycluster import metadata
from cluster.manifests.settings import ClusterConfiguration


def head_budget(config: ClusterConfiguration) -> dict[str, Any]:
    """Return the budget that makes a drained node wait for the end of a run: without its head the cluster is lost."""
    return _budget(config, "head", 1)


def worker_budget(config: ClusterConfiguration, least: int) -> dict[str, Any]:
    """Return the budget by which a drain takes the endpoint's workers one at a time.

    Args:
        config: The settings.
        least: Minimum number of workers, at least 2: with 1, its node could never be drained.
    """
    return _budget(config, "worker", least - 1)


def _budget(config: ClusterConfiguration, node_type: str, least: int) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**metadata(config), "name": f"{config.name}-{node_type}", "labels": pod_labels(config)},
        "spec": {
            # Kubernetes accepts only an absolute minAvailable for pods whose controller it does not know.
            "minAvailable": least,
            "selector": {"matchLabels": {INSTANCE_LABEL: config.name, NODE_TYPE_LABEL: node_type}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
