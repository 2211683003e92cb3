"""Check files of `ray up`: Ray's schema, its rules beyond the schema, and access to the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path as FilePath

import orjson

from cluster.manifests.settings_sources import nearest
from cluster.validate.documents import Document, Fault
from cluster.validate.ray_options import check_image
from cluster.validate.schema import Schema, check, shown
from pipeline.patches.looks_patches import node_providers


@cache
def ray_up_schema() -> Schema:
    """Return the JSON Schema that Ray ships."""
    import ray.autoscaler

    file = FilePath(ray.autoscaler.__file__).parent / "ray-schema.json"
    schema: Schema = orjson.loads(file.read_bytes())
    return schema


def check_ray_up(document: Document) -> Iterator[Fault]:
    """Yield the faults of a file of `ray up`."""
    for path, reason in check(document.value, ray_up_schema()):
        yield document.fault(path, reason)
    yield from _provider(document)
    yield from _node_types(document)
    yield from _images(document)
    yield from _access(document)
    if document.get("cluster_synced_files") is None:
        yield document.fault((), "missing key 'cluster_synced_files', which `ray up` requires; may be []")


def _provider(document: Document) -> Iterator[Fault]:
    known = node_providers()
    kind = document.get("provider", "type")
    if isinstance(kind, str) and known and kind not in known:
        yield document.fault(("provider", "type"), f"unknown provider {kind!r}{nearest(kind, known)}")


def _node_types(document: Document) -> Iterator[Fault]:
    types = document.get("available_node_types")
    if not isinstance(types, dict):
        return
    head = document.get("head_node_type")
    if head is None:
        yield document.fault((), "missing key 'head_node_type', expected one of available_node_types")
    elif not isinstance(head, str) or head not in types:
        yield document.fault(("head_node_type",), f"there is no node type {shown(head)}{nearest(str(head), types)}")
    elif document.get("available_node_types", head, "node_config", "InstanceMarketOptions", "MarketType") == "spot":
        market = ("available_node_types", str(head), "node_config", "InstanceMarketOptions", "MarketType")
        yield document.fault(market, "the head is on a spot instance: if that is reclaimed, the cluster is lost")
    most = document.get("max_workers")
    least = {name: document.get("available_node_types", name, "min_workers") or 0 for name in types}
    for name in types:
        own = document.get("available_node_types", name, "max_workers")
        if isinstance(own, int) and isinstance(least[name], int) and least[name] > own:
            path = ("available_node_types", str(name), "min_workers")
            yield document.fault(path, f"expected at most max_workers ({own}), got {least[name]}")
    total = sum(count for count in least.values() if isinstance(count, int))
    if isinstance(most, int) and total > most:
        yield document.fault(("max_workers",), f"expected at least {total}, the min_workers of all types, got {most}")


def _images(document: Document) -> Iterator[Fault]:
    for name in ("image", "head_image", "worker_image"):
        yield from check_image(document, ("docker", name))
    types = document.get("available_node_types")
    for name in types if isinstance(types, dict) else ():
        yield from check_image(document, ("available_node_types", name, "docker", "worker_image"))


def _access(document: Document) -> Iterator[Fault]:
    """Yield an open head, on which anyone could run code: no token, or a dashboard on every interface."""
    commands = document.get("head_start_ray_commands")
    starts = [text for text in commands if isinstance(text, str)] if isinstance(commands, list) else []
    for number, text in enumerate(starts):
        if "--dashboard-host" in text and not any(
            f"--dashboard-host{sign}{host}" in text for sign in "= " for host in ("127.0.0.1", "localhost")
        ):
            reason = "expected --dashboard-host=127.0.0.1: only `ray dashboard` should reach it, through a tunnel"
            yield document.fault(("head_start_ray_commands", number), reason)
    options = document.get("docker", "run_options")
    texts = [*starts, *(str(option) for option in options or [])] if isinstance(options, (list, type(None))) else starts
    if not any("RAY_AUTH_MODE=token" in text for text in texts):
        reason = "token authentication is off: expected RAY_AUTH_MODE=token in docker.run_options or the start commands"
        yield document.fault(("docker", "run_options"), f"{reason}; anyone who reaches Ray can run code")
