"""The network policy: which pods may connect to the cluster. Ray asks them for its token as well."""

from __future__ import annotations

from typing import Any

from cluster.manifests.pods import GRPC_PORT, HTTP_PORT, INSTANCE_LABEL, METRICS_PORT, pod_labels
from cluster.manifests.raycluster import metadata
from cluster.manifests.settings import ClusterConfiguration

DASHBOARD_PORT = 8265
# KubeRay's Helm chart and its kustomization both set it.
OPERATOR_LABELS = {"app.kubernetes.io/component": "kuberay-operator"}
# Kubernetes sets it on every namespace.
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def network_policy(config: ClusterConfiguration, *, serves: bool = False) -> dict[str, Any]:
    """Return a policy: all ports from this cluster, the dashboard from KubeRay, metrics from anywhere.

    Args:
        config: The settings.
        serves: Whether to open the endpoint's ports too. KubeRay's operator checks its health on the HTTP port.
    """
    endpoint = (HTTP_PORT, GRPC_PORT) if serves else ()
    own = {INSTANCE_LABEL: config.name}
    # The label alone would admit any pod that sets it, in any namespace.
    operator = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: config.operator_namespace}},
        "podSelector": {"matchLabels": OPERATOR_LABELS},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**metadata(config), "labels": pod_labels(config)},
        "spec": {
            "podSelector": {"matchLabels": own},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": own}}]},
                {"from": [operator], "ports": _ports(DASHBOARD_PORT, *endpoint[:1])},
                {"from": [{"namespaceSelector": {}}], "ports": _ports(METRICS_PORT, *endpoint)},
            ],
        },
    }


def _ports(*ports: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]
