"""Check a RayService and the endpoint inside."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.validate.capacity import kuberay_capacity
from cluster.validate.documents import Document, Fault
from cluster.validate.kuberay_rules import service_rules
from cluster.validate.raycluster import check_head_port, check_ray_cluster
from cluster.validate.serve_config import check_serve

BASE = ("spec", "rayClusterConfig")


def check_rayservice(document: Document) -> Iterator[Fault]:
    """Yield the faults of a RayService beyond its schema."""
    if document.get("spec") is not None and document.get("spec", "serveConfigV2") in (None, ""):
        yield document.fault(("spec",), "missing key 'serveConfigV2'")
    yield from service_rules(document, ("spec",))
    yield from check_ray_cluster(document, BASE)
    inside, faults = document.embedded("spec", "serveConfigV2")
    yield from faults
    if inside is not None:
        port = inside.get("http_options", "port")
        yield from check_head_port(document, BASE, "serve", port if isinstance(port, int) else 8000)
        yield from check_serve(inside, kuberay_capacity(document, BASE), in_pods=True)
