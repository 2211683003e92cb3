"""A RayJob: what it runs."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from cluster.validate.capacity import kuberay_capacity
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.entrypoint import check_entrypoint
from cluster.validate.kuberay_rules import job_rules
from cluster.validate.ray_options import check_runtime_env
from cluster.validate.raycluster import check_pod, check_ray_cluster


def check_rayjob(document: Document, spec: Path = ("spec",)) -> Iterator[Fault]:
    """Yield what is wrong with a RayJob, beyond its shape.

    Args:
        document: A RayJob, or a RayCronJob that makes them.
        spec: Where the job's specification stands.
    """
    base = (*spec, "rayClusterSpec")
    mode = document.get(*spec, "submissionMode")
    yield from job_rules(document, spec)
    yield from check_ray_cluster(document, base)
    if document.get(*spec, "submitterPodTemplate") is not None:
        yield from check_pod(document, (*spec, "submitterPodTemplate", "spec"))
    if mode != "InteractiveMode":
        if document.get(*spec, "entrypoint") in (None, ""):
            yield document.fault(spec, "missing key 'entrypoint', expected `shardlabel label ...`")
        capacity = kuberay_capacity(document, base) if document.get(*base) is not None else None
        yield from check_entrypoint(document, (*spec, "entrypoint"), base, capacity)
    resources = document.get(*spec, "entrypointResources")
    if isinstance(resources, str) and resources and not _is_json_table(resources):
        reason = f"expected JSON as '{{\"name\": 1}}', got {resources!r}"
        yield document.fault((*spec, "entrypointResources"), reason)
    environment, faults = document.embedded(*spec, "runtimeEnvYAML")
    yield from faults
    if environment is not None:
        yield from check_runtime_env(environment, ())
        if mode in (None, "K8sJobMode", "SidecarMode"):
            yield from _read_by_a_shell(document, (*spec, "runtimeEnvYAML"))


def _read_by_a_shell(document: Document, path: Path) -> Iterator[Fault]:
    """Yield what the submitter's shell would expand: KubeRay gives it the environment between double quotes."""
    found = next((letter for letter in "$`" if letter in str(document.get(*path))), None)
    if found:
        reason = f"expected no {found}, which the shell of the submitter would expand; use"
        yield document.fault(path, f"{reason} HTTPMode or a variable of the pod")


def _is_json_table(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False
