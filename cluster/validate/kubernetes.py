"""Check KubeRay's kinds by KubeRay's schemas and the naming rules of Kubernetes. Other kinds are not checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cluster.manifests.setting_types import LABEL_KEY, LABEL_VALUE
from cluster.manifests.settings_sources import nearest
from cluster.validate.crds import kuberay_schemas
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.schema import check, shown

RAY_API = "ray.io/v1"
# KubeRay's own limits: it appends to the names.
NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 47}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def is_foreign(document: Document) -> bool:
    """Tell whether a document's kind is not one of KubeRay's."""
    kind, version = document.get("kind"), document.get("apiVersion")
    named = isinstance(kind, str) and isinstance(version, str)
    return named and kind not in NAME_LENGTHS and not version.startswith("ray.io/")


def check_resource(document: Document) -> Iterator[Fault]:
    """Yield the faults in kind, version, name, labels and schema."""
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in NAME_LENGTHS:
        what = "missing key 'kind'" if kind is None else f"unknown kind {shown(kind)}{nearest(str(kind), NAME_LENGTHS)}"
        yield document.fault(("kind",), what)
        return
    version = document.get("apiVersion")
    if version != RAY_API:
        got = "missing key 'apiVersion', " if version is None else f"got {shown(version)}, "
        yield document.fault(("apiVersion",), f"{got}expected {RAY_API!r}")
    schema = {**kuberay_schemas()["kinds"][kind], "required": ["metadata", "spec"], "$defs": kuberay_schemas()["$defs"]}
    for path, reason in check(document.value, schema):
        if path != ("apiVersion",):
            yield document.fault(path, reason)
    name = document.get("metadata", "name")
    if name is None and isinstance(document.get("metadata"), dict) and not document.get("metadata", "generateName"):
        yield document.fault(("metadata",), "missing key 'name'")
    if isinstance(name, str) and not DNS_1035.fullmatch(name):
        expected = "a lower-case letter, then letters, digits and dashes (DNS-1035)"
        yield document.fault(("metadata", "name"), f"expected {expected}, got {name!r}")
    if isinstance(name, str) and len(name) > NAME_LENGTHS[kind]:
        reason = f"expected at most {NAME_LENGTHS[kind]} characters, got {len(name)}: {name!r}"
        yield document.fault(("metadata", "name"), reason)
    labels = document.get("metadata", "labels")
    yield from check_labels(document, ("metadata", "labels"), labels if isinstance(labels, dict) else {})


def check_labels(document: Document, path: Path, labels: dict[str, Any]) -> Iterator[Fault]:
    """Yield label keys and values that Kubernetes refuses."""
    for key, value in labels.items():
        if not isinstance(key, str) or not LABEL_KEY.fullmatch(key):
            yield document.fault((*path, str(key)), f"expected a label key as name or example.com/name, got {key!r}")
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            expected = "at most 63 letters, digits, dashes, dots and underscores"
            yield document.fault((*path, str(key)), f"expected {expected}, got {shown(value)}")
