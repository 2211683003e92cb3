"""Check a RayJob and what it runs."""

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
    """Yield the faults of a RayJob beyond its schema.

    Args:
        document: A RayJob, or a RayCronJob that makes them.
        spec: Path of the job's specification.
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
            yield from _shell_expansions(document, (*spec, "runtimeEnvYAML"))


def _shell_expansions(document: Document, path: Path) -> Iterator[Fault]:
    """Yield text that the submitter's shell would expand: KubeRay puts the environment between double quotes."""
    found = next((letter for letter in "$`" if letter in str(document.get(*path))), None)
    if found:
        reason = f"expected no {found}, which the submitter's shell would expand"
        yield document.fault(path, f"{reason}; use HTTPMode, or a variable of the pod")


def _is_json_table(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False
