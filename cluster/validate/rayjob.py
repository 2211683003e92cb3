"""A RayJob: the rules that KubeRay applies after the schema, and what it runs."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from cluster.manifests.settings_sources import nearest
from cluster.validate.capacity import kuberay_capacity, start_param_conflicts
from cluster.validate.documents import Document, Fault
from cluster.validate.entrypoint import check_entrypoint
from cluster.validate.ray_options import check_runtime_env
from cluster.validate.raycluster import check_head_port, check_pod, check_ray_cluster
from cluster.validate.schema import shown

BASE = ("spec", "rayClusterSpec")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def check_rayjob(document: Document) -> Iterator[Fault]:
    """Yield what is wrong with a RayJob, beyond its shape."""
    selector = document.get("spec", "clusterSelector")
    if document.get(*BASE) is None and not selector:
        yield document.fault(
            ("spec",), "missing key 'rayClusterSpec' (or 'clusterSelector', for a cluster that exists)"
        )
    mode = document.get("spec", "submissionMode")
    yield from _mode(document, mode)
    yield from _end(document)
    yield from check_ray_cluster(document, BASE)
    yield from check_head_port(document, BASE, "dashboard", 8265)
    for path, reason in start_param_conflicts(document, BASE):
        yield document.fault(path, reason)
    if document.get("spec", "submitterPodTemplate") is not None:
        yield from check_pod(document, ("spec", "submitterPodTemplate", "spec"))
    capacity = kuberay_capacity(document, BASE) if document.get(*BASE) is not None else None
    if mode != "InteractiveMode":
        if document.get("spec", "entrypoint") in (None, ""):
            yield document.fault(("spec",), "missing key 'entrypoint', expected `shardlabel label ...`")
        yield from check_entrypoint(document, ("spec", "entrypoint"), BASE, capacity)
    yield from _entrypoint_resources(document)
    environment, faults = document.embedded("spec", "runtimeEnvYAML")
    yield from faults
    if environment is not None:
        yield from check_runtime_env(environment, ())
        if mode in (None, "K8sJobMode", "SidecarMode"):
            yield from _read_by_a_shell(document)


def _read_by_a_shell(document: Document) -> Iterator[Fault]:
    """Yield what the submitter's shell would expand: KubeRay gives it the environment between double quotes."""
    text = str(document.get("spec", "runtimeEnvYAML"))
    found = next((letter for letter in "$`" if letter in text), None)
    if found:
        reason = (
            f"expected no {found}, which the shell of the submitter would expand; use HTTPMode or a variable of the pod"
        )
        yield document.fault(("spec", "runtimeEnvYAML"), reason)


def _mode(document: Document, mode: object) -> Iterator[Fault]:
    if mode is not None and mode not in MODES:
        reason = f"expected {' or '.join(MODES)}, got {shown(mode)}{nearest(str(mode), MODES, or_all=False)}"
        yield document.fault(("spec", "submissionMode"), reason)
    retries = document.get("spec", "backoffLimit")
    if isinstance(retries, int) and retries < 0:
        yield document.fault(("spec", "backoffLimit"), f"must be at least 0, got {retries}")
    if mode == "InteractiveMode" and isinstance(retries, int) and retries > 0:
        yield document.fault(("spec", "backoffLimit"), f"expected 0 in InteractiveMode, got {retries}")
    if mode in ("SidecarMode", "HTTPMode"):
        for name in ("submitterPodTemplate", "submitterConfig"):
            if document.get("spec", name) is not None:
                yield document.fault(("spec", name), f"there is no submitter pod in {mode}; expected no {name}")
    if mode == "SidecarMode" and document.get("spec", "clusterSelector"):
        yield document.fault(("spec", "clusterSelector"), "cannot be used in SidecarMode")
    if mode == "K8sJobMode" or mode is None:
        policy = document.get("spec", "submitterPodTemplate", "spec", "restartPolicy")
        if policy == "Always":
            path = ("spec", "submitterPodTemplate", "spec", "restartPolicy")
            yield document.fault(path, "expected 'Never' or 'OnFailure', got 'Always': a Kubernetes Job refuses it")


def _end(document: Document) -> Iterator[Fault]:
    shuts_down = document.get("spec", "shutdownAfterJobFinishes") is True
    keep = document.get("spec", "ttlSecondsAfterFinished")
    if isinstance(keep, int) and keep < 0:
        yield document.fault(("spec", "ttlSecondsAfterFinished"), f"must be at least 0, got {keep}")
    if isinstance(keep, int) and keep > 0 and not shuts_down:
        reason = f"expected shutdownAfterJobFinishes: true beside it, got {keep} without"
        yield document.fault(("spec", "ttlSecondsAfterFinished"), reason)
    deadline = document.get("spec", "activeDeadlineSeconds")
    if isinstance(deadline, int) and deadline < 1:
        yield document.fault(("spec", "activeDeadlineSeconds"), f"must be at least 1, got {deadline}")
    if document.get("spec", "suspend") is True and not shuts_down:
        yield document.fault(("spec", "suspend"), "expected shutdownAfterJobFinishes: true beside it")
    strategy = document.get("spec", "deletionStrategy")
    if isinstance(strategy, dict):
        yield from _deletion(document, strategy, shuts_down=shuts_down)


def _deletion(document: Document, strategy: dict[str, object], *, shuts_down: bool) -> Iterator[Fault]:
    path = ("spec", "deletionStrategy")
    rules = "deletionRules" in strategy
    older = [name for name in ("onSuccess", "onFailure") if name in strategy]
    if rules and older:
        yield document.fault(path, f"expected deletionRules or {' and '.join(older)}, got both")
    if not rules and len(older) < 2:
        yield document.fault(path, "expected deletionRules, or both onSuccess and onFailure")
    if rules and shuts_down:
        yield document.fault(path, "expected no shutdownAfterJobFinishes beside deletionRules")


def _entrypoint_resources(document: Document) -> Iterator[Fault]:
    text = document.get("spec", "entrypointResources")
    if isinstance(text, str) and text:
        try:
            is_table = isinstance(orjson.loads(text), dict)
        except ValueError:
            is_table = False
        if not is_table:
            yield document.fault(("spec", "entrypointResources"), f"expected JSON as '{{\"name\": 1}}', got {text!r}")
