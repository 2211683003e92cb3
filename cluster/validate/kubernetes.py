"""Kubernetes manifests: the kinds that are known, their schemas, and the rules on names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from cluster.manifests.setting_types import LABEL_KEY, LABEL_VALUE
from cluster.manifests.settings_sources import nearest
from cluster.validate.crds import kuberay_schemas
from cluster.validate.documents import Document, Fault
from cluster.validate.schema import Schema, check, shown

RAY_API = "ray.io/v1"
API_VERSIONS = {
    "RayCluster": RAY_API,
    "RayJob": RAY_API,
    "RayService": RAY_API,
    "RayCronJob": RAY_API,
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Service": "v1",
    "Pod": "v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "PersistentVolumeClaim": "v1",
    "Secret": "v1",
    "ConfigMap": "v1",
    "ServiceAccount": "v1",
    "Namespace": "v1",
}
# KubeRay's own bounds: it appends to the names.
NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def check_resource(document: Document) -> Iterator[Fault]:
    """Yield what is wrong with kind, version, metadata and shape."""
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in API_VERSIONS:
        what = "missing key 'kind'" if kind is None else f"unknown kind {shown(kind)}{nearest(str(kind), API_VERSIONS)}"
        yield document.fault(("kind",), what)
        return
    version = document.get("apiVersion")
    if version != API_VERSIONS[kind]:
        got = "missing key 'apiVersion', " if version is None else f"got {shown(version)}, "
        yield document.fault(("apiVersion",), f"{got}expected {API_VERSIONS[kind]!r}")
    for path, reason in check(document.value, {**schemas()[kind], "$defs": kuberay_schemas()["$defs"]}):
        if path != ("apiVersion",):
            yield document.fault(path, reason)
    yield from _metadata(document, kind)


@cache
def schemas() -> dict[str, Schema]:
    """Return the schema of each kind: KubeRay's own, and what its pods and policies tell of Kubernetes' others."""
    kinds = {kind: _whole(schema["properties"]["spec"]) for kind, schema in kuberay_schemas()["kinds"].items()}

    def below(*path: str) -> Any:  # noqa: ANN401
        schema = _resolve(kuberay_schemas()["kinds"]["RayCluster"])
        for name in path:
            below = schema if name == "items" else schema.get("properties", {})
            schema = _resolve(below[name])
        return schema

    rules = below("spec", "networkPolicy", "head")["properties"]
    selector = below("spec", "networkPolicy", "head", "ingressRules", "items", "from", "items", "podSelector")
    kinds["NetworkPolicy"] = _whole(
        {
            "type": "object",
            "required": ["podSelector"],
            "properties": {
                "podSelector": selector,
                "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
                "ingress": rules["ingressRules"],
                "egress": rules["egressRules"],
            },
        }
    )
    volume = below("spec", "headGroupSpec", "template", "spec", "volumes", "items")
    claim = _resolve(volume["properties"]["ephemeral"])["properties"]["volumeClaimTemplate"]
    kinds["PersistentVolumeClaim"] = _whole(_resolve(claim)["properties"]["spec"])
    service = _resolve(kuberay_schemas()["kinds"]["RayService"]["properties"]["spec"])["properties"]["serveService"]
    kinds["Service"] = _whole(_resolve(service)["properties"]["spec"])
    kinds |= _workloads(below("spec", "headGroupSpec", "template"), selector)
    job = kuberay_schemas()["kinds"]["RayJob"]["properties"]["spec"]
    cron: Schema = {"schedule": {"type": "string"}, "suspend": {"type": "boolean"}, "jobTemplate": job}
    kinds["RayCronJob"] = _whole({"type": "object", "required": ["schedule", "jobTemplate"], "properties": cron})
    amounts = {name: {"type": ["integer", "string"]} for name in ("minAvailable", "maxUnavailable")}
    budget: Schema = {**amounts, "selector": selector, "unhealthyPodEvictionPolicy": {"type": "string"}}
    kinds["PodDisruptionBudget"] = _whole({"type": "object", "required": ["selector"], "properties": budget})
    kinds["Secret"] = _whole(None, data=TEXTS, stringData=TEXTS, type={"type": "string"}, immutable={"type": "boolean"})
    kinds["ConfigMap"] = _whole(None, data=TEXTS, binaryData=TEXTS, immutable={"type": "boolean"})
    kinds["ServiceAccount"] = _whole(None, automountServiceAccountToken={"type": "boolean"}, imagePullSecrets={})
    kinds["Namespace"] = _whole(None)
    return kinds


def _resolve(schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = kuberay_schemas()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _workloads(template: Schema, selector: Schema) -> dict[str, Schema]:
    """Return the schemas of what may stand beside a Ray cluster, as a Redis: pods by KubeRay's, the rest by their keys."""
    number: Schema = {"type": "integer", "minimum": 0}
    numbers = {
        "Deployment": ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"),
        "Job": ("backoffLimit", "completions", "parallelism", "activeDeadlineSeconds", "ttlSecondsAfterFinished"),
    }
    more: dict[str, Schema] = {
        "Deployment": {"selector": selector, "strategy": {"type": "object"}, "paused": {"type": "boolean"}},
        "Job": {"suspend": {"type": "boolean"}, "completionMode": {"type": "string"}},
    }
    found = {"Pod": _whole(template["properties"]["spec"])}
    for kind, names in numbers.items():
        properties = {"template": template, **dict.fromkeys(names, number), **more[kind]}
        found[kind] = _whole({"type": "object", "required": ["template"], "properties": properties})
    return found


def _whole(spec: Schema | None, **more: Schema) -> Schema:
    metadata: Schema = {
        "type": "object",
        "properties": {
            **{name: {"type": "string"} for name in ("name", "generateName", "namespace")},
            "labels": TEXTS,
            "annotations": TEXTS,
            "finalizers": {"type": "array", "items": {"type": "string"}},
        },
    }
    properties: Schema = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata, **more}
    required = ["metadata"]
    if spec is not None:
        properties["spec"] = spec
        required.append("spec")
    return {"type": "object", "required": required, "properties": properties}


def _metadata(document: Document, kind: str) -> Iterator[Fault]:
    name = document.get("metadata", "name")
    if name is None:
        if isinstance(document.get("metadata"), dict) and document.get("metadata", "generateName") is None:
            yield document.fault(("metadata",), "missing key 'name'")
    elif isinstance(name, str):
        yield from _name(document, kind, name)
    namespace = document.get("metadata", "namespace")
    if isinstance(namespace, str) and (not DNS_1123.fullmatch(namespace) or len(namespace) > 63 or "." in namespace):
        expected = "lower-case letters, digits and dashes, at most 63 (DNS-1123)"
        yield document.fault(("metadata", "namespace"), f"expected {expected}, got {namespace!r}")
    labels = document.get("metadata", "labels")
    if isinstance(labels, dict):
        yield from check_labels(document, ("metadata", "labels"), labels)


def _name(document: Document, kind: str, name: str) -> Iterator[Fault]:
    path = ("metadata", "name")
    if kind in NAME_LENGTHS:
        if not DNS_1035.fullmatch(name):
            expected = "a lower-case letter, then letters, digits and dashes (DNS-1035)"
            yield document.fault(path, f"expected {expected}, got {name!r}")
        if len(name) > NAME_LENGTHS[kind]:
            yield document.fault(path, f"expected at most {NAME_LENGTHS[kind]} characters, got {len(name)}: {name!r}")
    elif not DNS_1123.fullmatch(name) or len(name) > 253:
        expected = "lower-case letters, digits, dashes and dots (DNS-1123)"
        yield document.fault(path, f"expected {expected}, got {name!r}")


def check_labels(document: Document, path: tuple[str | int, ...], labels: dict[str, Any]) -> Iterator[Fault]:
    """Yield keys and values of labels that Kubernetes refuses."""
    for key, value in labels.items():
        if not isinstance(key, str) or not LABEL_KEY.fullmatch(key):
            yield document.fault((*path, str(key)), f"expected a label key as name or example.com/name, got {key!r}")
        if isinstance(value, str) and (not LABEL_VALUE.fullmatch(value) or len(value) > 63):
            expected = "at most 63 letters, digits, dashes, dots and underscores"
            yield document.fault((*path, str(key)), f"expected {expected}, got {value!r}")
