"""Validate manifest files: every document, with every fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cluster.validate.documents import Document, Fault, read_documents
from cluster.validate.kubernetes import check_resource, is_foreign
from cluster.validate.ray_up import check_ray_up, ray_up_schema
from cluster.validate.raycluster import check_ray_cluster
from cluster.validate.rayjob import check_rayjob
from cluster.validate.rayservice import check_rayservice
from cluster.validate.serve_config import check_serve, serve_schema

Check = Callable[[Document], Iterator[Fault]]


def validate(files: Iterable[Path]) -> Iterator[tuple[Path, list[Document], list[Fault]]]:
    """Check files, without starting anything or contacting a cluster.

    Yields:
        (file, its documents, its faults sorted by line).
    """
    for file in files:
        documents, faults = read_documents(file)
        for document in documents:
            faults += check_document(document)
        yield file, documents, sorted(dict.fromkeys(faults), key=lambda fault: fault.line)


def check_document(document: Document) -> Iterator[Fault]:
    """Yield the faults of a document of any kind."""
    if not isinstance(document.value, dict):
        yield document.fault((), f"expected a mapping, got {type(document.value).__name__}")
        return
    yield from _check_for(document)(document)


def _check_for(document: Document) -> Check:
    """Return the check for a document: that of the kind with most of its keys, so that misspelt keys are found."""
    keys = set(document.value)
    if keys & {"apiVersion", "kind"}:
        return _kubernetes
    scores: list[tuple[int, Check]] = [
        (len(keys & set(ray_up_schema()["properties"])), check_ray_up),
        (len(keys & set(serve_schema()["properties"])), lambda document: check_serve(document, None)),
        (len(keys & {"metadata", "spec"}), _kubernetes),
    ]
    score, check = max(scores, key=lambda scored: scored[0])
    return check if score else _unknown


def _unknown(document: Document) -> Iterator[Fault]:
    expected = "a Kubernetes manifest (apiVersion, kind), a `ray up` file (cluster_name, provider) or one of Serve"
    got = ", ".join(sorted(map(str, document.value))[:5]) or "no keys"
    yield document.fault((), f"expected {expected} (applications), got {got}")


def not_checked(documents: Iterable[Document]) -> list[str]:
    """List what is not checked: documents that are not KubeRay's, and rules that only a cluster knows."""
    of_kubernetes = [document for document in documents if document.get("kind") is not None]
    foreign = [document.name for document in of_kubernetes if is_foreign(document)]
    return [*foreign, "what a cluster adds: admission, quotas, KubeRay's feature gates"] if of_kubernetes else []


def _kubernetes(document: Document) -> Iterator[Fault]:
    if is_foreign(document):
        return
    yield from check_resource(document)
    kind = document.get("kind")
    if kind == "RayJob":
        yield from check_rayjob(document)
    elif kind == "RayCronJob":
        yield from check_rayjob(document, ("spec", "jobTemplate"))
    elif kind == "RayService":
        yield from check_rayservice(document)
    elif kind == "RayCluster":
        yield from check_ray_cluster(document, ("spec",))
