"""A RayService: the rules that KubeRay applies after the schema, and the endpoint inside."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.manifests.settings_sources import nearest
from cluster.validate.capacity import kuberay_capacity, start_param_conflicts
from cluster.validate.documents import Document, Fault
from cluster.validate.raycluster import check_head_port, check_ray_cluster
from cluster.validate.schema import shown
from cluster.validate.serve_config import check_serve

BASE = ("spec", "rayClusterConfig")
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")


def check_rayservice(document: Document) -> Iterator[Fault]:
    """Yield what is wrong with a RayService, beyond its shape."""
    for name in ("rayClusterConfig", "serveConfigV2"):
        if document.get("spec") is not None and document.get("spec", name) in (None, ""):
            yield document.fault(("spec",), f"missing key {name!r}")
    yield from _upgrade(document)
    yield from check_ray_cluster(document, BASE)
    yield from check_head_port(document, BASE, "dashboard", 8265)
    for path, reason in start_param_conflicts(document, BASE):
        yield document.fault(path, reason)
    if document.get(*BASE, "headGroupSpec", "headService", "metadata", "name") is not None:
        path = (*BASE, "headGroupSpec", "headService", "metadata", "name")
        yield document.fault(path, "expected no name: KubeRay names the service of the head itself")
    inside, faults = document.embedded("spec", "serveConfigV2")
    yield from faults
    if inside is not None:
        port = inside.get("http_options", "port")
        yield from check_head_port(document, BASE, "serve", port if isinstance(port, int) else 8000)
        yield from check_serve(inside, kuberay_capacity(document, BASE), in_pods=True)


def _upgrade(document: Document) -> Iterator[Fault]:
    strategy = ("spec", "upgradeStrategy")
    kind = document.get(*strategy, "type")
    if kind is not None and kind not in UPGRADES:
        reason = f"expected {' or '.join(UPGRADES)}, got {shown(kind)}{nearest(str(kind), UPGRADES, or_all=False)}"
        yield document.fault((*strategy, "type"), reason)
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if document.get(*strategy, "clusterUpgradeOptions") is None:
        yield document.fault(strategy, "missing key 'clusterUpgradeOptions', which an incremental upgrade needs")
    if document.get(*BASE, "enableInTreeAutoscaling") is not True:
        yield document.fault(BASE, "expected enableInTreeAutoscaling: true, which an incremental upgrade needs")
    for name in ("maxSurgePercent", "stepSizePercent"):
        share = document.get(*strategy, "clusterUpgradeOptions", name)
        if isinstance(share, int) and not 0 <= share <= 100:
            yield document.fault((*strategy, "clusterUpgradeOptions", name), f"expected 0 to 100, got {share}")
