"""Check the Ray cluster in a manifest: what KubeRay would refuse, and what would run but not as intended."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.manifests.pods import SPOT_LABELS
from cluster.manifests.settings_sources import nearest
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.kuberay_rules import cluster_rules
from cluster.validate.kubernetes import DNS_1123
from cluster.validate.ray_options import check_image, check_ray_version, start_options
from cluster.validate.schema import shown

SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|API_KEY|CREDENTIALS)$")
RESOURCE_OF = {"num-cpus": "cpu", "num-gpus": "nvidia.com/gpu"}


def check_ray_cluster(document: Document, base: Path) -> Iterator[Fault]:
    """Yield the faults of a RayClusterSpec beyond its schema.

    Args:
        document: A document that contains one.
        base: Its path.
    """
    if not isinstance(document.get(*base), dict):
        return
    yield from check_ray_version(document, (*base, "rayVersion"))
    yield from _access(document, base)
    yield from _head(document, base)
    for index, path in worker_paths(document, base):
        yield from _group(document, path, index)
    yield from _group_names(document, base)
    yield from check_head_port(document, base, "dashboard", 8265)
    for path in pod_paths(document, base):
        yield from check_pod(document, path)
    yield from cluster_rules(document, base, [path for _, path in worker_paths(document, base)])


def worker_paths(document: Document, base: Path) -> Iterator[tuple[int, Path]]:
    """Yield (index, path) of each worker group."""
    for index, group in enumerate(document.items(*base, "workerGroupSpecs")):
        if isinstance(group, dict):
            yield index, (*base, "workerGroupSpecs", index)


def pod_paths(document: Document, base: Path) -> Iterator[Path]:
    """Yield the path of each pod specification, the head's first."""
    yield (*base, "headGroupSpec", "template", "spec")
    for _, path in worker_paths(document, base):
        yield (*path, "template", "spec")


def check_pod(document: Document, path: Path) -> Iterator[Fault]:
    """Yield the faults of a pod: containers, images, resources, mounts, secrets in plain text."""
    containers = document.get(*path, "containers")
    if not isinstance(containers, list):
        return
    if not containers:
        yield document.fault((*path, "containers"), "expected at least one container, got none")
    volumes = document.items(*path, "volumes")
    names = {str(volume.get("name")) for volume in volumes if isinstance(volume, dict)}
    for number, container in enumerate(containers):
        if not isinstance(container, dict):
            continue
        at = (*path, "containers", number)
        name = container.get("name")
        if isinstance(name, str) and (not DNS_1123.fullmatch(name) or "." in name or len(name) > 63):
            expected = "lower-case letters, digits and dashes, at most 63 (DNS-1123)"
            yield document.fault((*at, "name"), f"expected {expected}, got {name!r}")
        yield from check_image(document, (*at, "image"))
        yield from _resources(document, at)
        yield from _mounts(document, at, names)
        yield from _secrets(document, at)


def _resources(document: Document, at: Path) -> Iterator[Fault]:
    path = (*at, "resources")
    requests, limits = document.get(*path, "requests"), document.get(*path, "limits")
    # Without requests, Kubernetes uses the limits.
    for resource in ("cpu", "memory"):
        if not isinstance(limits, dict) or resource not in limits:
            yield document.fault((*path, "limits"), f"missing key {resource!r}: without it the pod is unlimited")
    if not isinstance(requests, dict) or not isinstance(limits, dict):
        return
    for resource, amount in requests.items():
        limit = limits.get(resource)
        if limit is not None and quantity(amount) > quantity(limit):
            where = (*path, "requests", str(resource))
            yield document.fault(where, f"requests {amount} are above the limit of {limit}")
    gpus = {side: amounts.get("nvidia.com/gpu") for side, amounts in (("requests", requests), ("limits", limits))}
    if gpus["requests"] is not None and gpus["limits"] is None:
        yield document.fault((*path, "limits"), "missing key 'nvidia.com/gpu': Kubernetes requires GPUs in the limits")


def _mounts(document: Document, at: Path, volumes: set[str]) -> Iterator[Fault]:
    for number, mount in enumerate(document.items(*at, "volumeMounts")):
        name = mount.get("name") if isinstance(mount, dict) else None
        if isinstance(name, str) and name not in volumes:
            path = (*at, "volumeMounts", number, "name")
            yield document.fault(path, f"the pod has no volume {name!r}{nearest(name, volumes)}")


def _secrets(document: Document, at: Path) -> Iterator[Fault]:
    for number, variable in enumerate(document.items(*at, "env")):
        if isinstance(variable, dict) and variable.get("value") and SECRET_NAME.search(str(variable.get("name"))):
            path = (*at, "env", number, "value")
            yield document.fault(path, f"{variable['name']} is given in plain text; expected valueFrom.secretKeyRef")


def _access(document: Document, base: Path) -> Iterator[Fault]:
    mode = document.get(*base, "authOptions", "mode")
    if mode is None or mode == "disabled":
        path = (*base, "authOptions", "mode") if mode else base
        got = "'disabled'" if mode else "none"
        yield document.fault(path, f"authOptions.mode: expected 'token', got {got}: anyone who reaches Ray runs code")
    head = (*base, "headGroupSpec")
    service = document.get(*head, "serviceType")
    if service not in (None, "ClusterIP"):
        reason = f"expected 'ClusterIP', got {shown(service)}: it exposes the dashboard outside the cluster"
        yield document.fault((*head, "serviceType"), reason)
    if document.get(*head, "enableIngress") is True:
        yield document.fault(
            (*head, "enableIngress"), "expected false, got true: it exposes the dashboard outside the cluster"
        )


def _head(document: Document, base: Path) -> Iterator[Fault]:
    head = (*base, "headGroupSpec")
    yield from _start_params(document, head, is_head=True)
    spec = (*head, "template", "spec")
    selector = document.get(*spec, "nodeSelector")
    for key, value in (selector if isinstance(selector, dict) else {}).items():
        if (key, value) in SPOT_LABELS.items():
            path = (*spec, "nodeSelector", key)
            yield document.fault(path, "the head is on a spot node: if that is reclaimed, the cluster is lost")


def check_head_port(document: Document, base: Path, name: str, number: int) -> Iterator[Fault]:
    """Yield a fault if the head's container lists ports, but not the one that KubeRay needs."""
    at = (*base, "headGroupSpec", "template", "spec", "containers", 0, "ports")
    ports = document.get(*at)
    if not isinstance(ports, list) or not ports:
        return  # KubeRay then uses these ports by default
    found = [port.get("containerPort") for port in ports if isinstance(port, dict) and port.get("name") == name]
    if not found:
        yield document.fault(at, f"there is no port {name!r}, expected {number}: KubeRay makes its services from these")
    elif found[0] != number:
        yield document.fault(at, f"expected {number} as the port {name!r}, got {found[0]}")


def _group(document: Document, path: Path, index: int) -> Iterator[Fault]:
    least, now, most = (document.get(*path, name) for name in ("minReplicas", "replicas", "maxReplicas"))
    if all(isinstance(count, int) for count in (least, most)) and least > most:
        yield document.fault((*path, "minReplicas"), f"expected at most maxReplicas ({most}), got {least}")
    elif all(isinstance(count, int) for count in (least, now, most)) and not least <= now <= most:
        yield document.fault((*path, "replicas"), f"expected {least} to {most} (minReplicas, maxReplicas), got {now}")
    name = document.get(*path, "groupName")
    if isinstance(name, str) and (not DNS_1123.fullmatch(name) or len(name) > 63):
        expected = "lower-case letters, digits and dashes (DNS-1123)"
        yield document.fault((*path, "groupName"), f"expected {expected}, got {name!r}")
    yield from _start_params(document, path, is_head=False)


def _group_names(document: Document, base: Path) -> Iterator[Fault]:
    seen: set[str] = set()
    for _, path in worker_paths(document, base):
        name = document.get(*path, "groupName")
        if isinstance(name, str) and name in seen:
            yield document.fault((*path, "groupName"), f"two groups have the name {name!r}")
        seen.add(str(name))


def _start_params(document: Document, group: Path, *, is_head: bool) -> Iterator[Fault]:
    params = document.get(*group, "rayStartParams")
    known = start_options()
    for name, value in (params if isinstance(params, dict) else {}).items():
        path = (*group, "rayStartParams", str(name))
        if name not in known:
            yield document.fault(path, f"`ray start` has no option --{name}{nearest(str(name), known)}")
        elif name == "dashboard-host" and is_head and value in ("127.0.0.1", "localhost"):
            reason = f"expected '0.0.0.0', got {value!r}: KubeRay polls the dashboard from another pod"
            yield document.fault(path, f"{reason}, and would wait forever")
        elif name in RESOURCE_OF and not is_head:
            limit = document.get(*group, "template", "spec", "containers", 0, "resources", "limits", RESOURCE_OF[name])
            if quantity(value) > (0 if limit is None else quantity(limit)):
                reason = f"expected at most the pod's limit of {RESOURCE_OF[name]} ({limit or 'none'}), got {value}"
                yield document.fault(path, reason)


SUFFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
SUFFIXES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}


def quantity(amount: object) -> float:
    """Return a Kubernetes quantity as a number ("500m" is 0.5); nan if it is not a quantity."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(amount))
    if match is None or match.group(2) not in SUFFIXES:
        return float("nan")
    try:
        return float(match.group(1)) * SUFFIXES[match.group(2)]
    except ValueError:
        return float("nan")
