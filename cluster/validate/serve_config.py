"""Check Ray Serve's configuration, in a RayService or a file, strictly: Serve itself accepts any key."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError

from cluster.manifests.settings_sources import describe
from cluster.validate.capacity import Capacity
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.import_paths import resolve
from cluster.validate.ray_options import check_runtime_env
from cluster.validate.schema import Schema, check, shown
from models.errors import ConfigError
from serve.config import DEPLOYMENT_NAME, ServeConfig, plan_replica

OURS = "serve.app.build_app"


def check_serve(document: Document, capacity: Capacity | None, *, in_pods: bool = False) -> Iterator[Fault]:
    """Yield the faults of a Ray Serve configuration.

    Args:
        document: The configuration.
        capacity: Capacity of the workers, if known.
        in_pods: Whether it runs in pods, where listening on loopback is useless.
    """
    faults = [document.fault(path, reason) for path, reason in check(document.value, serve_schema())]
    yield from faults
    if not isinstance(document.value, dict):
        return
    if not faults:
        yield from _serve_faults(document)
    if document.get("applications") == []:
        yield document.fault(("applications",), "expected at least one application, got none")
    if in_pods and document.get("http_options", "host") in ("127.0.0.1", "localhost"):
        got = document.get("http_options", "host")
        yield document.fault(
            ("http_options", "host"), f"expected '0.0.0.0', got {got!r}: no service reaches it in a pod"
        )
    functions = document.get("grpc_options", "grpc_servicer_functions")
    for number, target in enumerate(functions if isinstance(functions, list) else []):
        path: Path = ("grpc_options", "grpc_servicer_functions", number)
        found, reason = resolve(target)
        if reason:
            yield document.fault(path, reason)
        elif isinstance(found, ast.Assign) and isinstance(found.value, ast.Constant):
            yield document.fault(path, f"expected a function, got {shown(found.value.value)} ({target})")
    applications = document.get("applications")
    for number, application in enumerate(applications if isinstance(applications, list) else []):
        if isinstance(application, dict):
            yield from _application(document, ("applications", number), capacity)


@cache
def serve_schema() -> Schema:
    """Return the JSON Schema of Serve's own configuration models."""
    from ray.serve.schema import ServeDeploySchema

    schema: Schema = ServeDeploySchema.model_json_schema()
    return schema


def _serve_faults(document: Document) -> Iterator[Fault]:
    """Yield what Serve's models refuse beyond their schema: duplicate names, limits across keys."""
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(document.value)
    except ValidationError as err:
        for error in err.errors():
            loc = error["loc"]
            path = tuple(part for n, part in enumerate(loc, 1) if document.get(*loc[:n]) is not None)
            yield document.fault(path, " ".join(error["msg"].removeprefix("Value error, ").split())[:300])
    except ValueError as err:
        yield document.fault((), " ".join(str(err).split())[:300])


def _application(document: Document, path: Path, capacity: Capacity | None) -> Iterator[Fault]:
    for place in (path, *_deployments(document, path)):
        for name in (("runtime_env",), ("ray_actor_options", "runtime_env")):
            yield from check_runtime_env(document, (*place, *name))
    for place in _deployments(document, path):
        yield from _deployment(document, place, capacity)
    target = document.get(*path, "import_path")
    if not isinstance(target, str):
        return
    found, reason = resolve(target)
    if reason:
        brought = [name for name in ("working_dir", "py_modules") if document.get(*path, "runtime_env", name)]
        if not brought:  # with them, the code may come from there and cannot be checked here
            yield document.fault((*path, "import_path"), reason)
        return
    yield from _names(document, path, target)
    yield from _args(document, path, target, found, capacity)


def _deployments(document: Document, path: Path) -> Iterator[Path]:
    deployments = document.get(*path, "deployments")
    for number, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        if isinstance(deployment, dict):
            yield (*path, "deployments", number)


def _deployment(document: Document, path: Path, capacity: Capacity | None) -> Iterator[Fault]:
    """Yield a fault if a deployment's maximum of replicas does not fit."""
    scaling = document.get(*path, "autoscaling_config")
    if isinstance(scaling, dict):
        yield from _scaling(document, path, scaling)
    most = scaling.get("max_replicas") if isinstance(scaling, dict) else document.get(*path, "num_replicas")
    options = document.get(*path, "ray_actor_options")
    options = options if isinstance(options, dict) else {}
    cpus, gpus = options.get("num_cpus", 1), options.get("num_gpus", 0)
    if capacity is None or not isinstance(most, int) or not all(isinstance(n, (int, float)) for n in (cpus, gpus)):
        return
    missing = capacity.missing(f"replicas of {document.get(*path, 'name')}", most, float(cpus), float(gpus))
    if missing:
        where = (*path, "autoscaling_config", "max_replicas") if isinstance(scaling, dict) else (*path, "num_replicas")
        yield document.fault(where, missing)


def _scaling(document: Document, path: Path, scaling: dict[str, Any]) -> Iterator[Fault]:
    """Yield invalid autoscaling settings: Serve accepts any mapping here, and the deployment fails later."""
    from ray.serve.config import AutoscalingConfig

    where = (*path, "autoscaling_config")
    try:
        AutoscalingConfig.model_validate(scaling)
    except ValidationError as err:
        message = err.errors()[0]["msg"].removeprefix("Value error, ")
        yield document.fault(where, " ".join(message.split())[:300])
    target, ongoing = scaling.get("target_ongoing_requests"), document.get(*path, "max_ongoing_requests")
    if isinstance(target, (int, float)) and isinstance(ongoing, int) and target > ongoing:
        reason = f"expected at most max_ongoing_requests ({ongoing}), got {target}: it would never grow"
        yield document.fault((*where, "target_ongoing_requests"), reason)


def _names(document: Document, path: Path, target: str) -> Iterator[Fault]:
    """Yield deployments that are given twice, or that our endpoint does not have."""
    seen: set[str] = set()
    for place in _deployments(document, path):
        name = document.get(*place, "name")
        if isinstance(name, str) and name in seen:
            yield document.fault((*place, "name"), f"two deployments have the name {name!r}")
        seen.add(str(name))
        if target.replace(":", ".") == OURS and isinstance(name, str) and name != DEPLOYMENT_NAME:
            reason = f"{target} has no deployment {name!r}; expected {DEPLOYMENT_NAME!r}"
            yield document.fault((*place, "name"), reason)


def _args(
    document: Document, path: Path, target: str, found: ast.stmt | None, capacity: Capacity | None
) -> Iterator[Fault]:
    """Yield arguments that the builder refuses: from its signature; for our own builder, from ServeConfig."""
    if isinstance(found, ast.ClassDef):
        reason = f"expected an application or a function that builds one, got a class ({target})"
        yield document.fault((*path, "import_path"), reason)
    elif isinstance(found, ast.FunctionDef) and (count := _parameters(found)) != 1:
        reason = f"expected a builder with one parameter, {target} has {count}"
        yield document.fault((*path, "import_path"), reason)
    if target.replace(":", ".") != OURS:
        return
    try:
        config = ServeConfig.model_validate(document.get(*path, "args") or {})
    except ValidationError as err:
        at = tuple(err.errors()[0]["loc"])
        yield document.fault((*path, "args", *at), describe(err, ServeConfig, "argument"))
        return
    if capacity is not None:
        yield from _replicas(document, path, config, capacity)


def _parameters(function: ast.FunctionDef) -> int:
    args = function.args
    named = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs)
    return named + sum(rest is not None for rest in (args.vararg, args.kwarg))


def _replicas(document: Document, path: Path, config: ServeConfig, capacity: Capacity) -> Iterator[Fault]:
    """Yield a fault if our own endpoint's replicas do not fit."""
    on_gpu = config.device == "cuda" or (config.device == "auto" and capacity.gpus > 0)
    if on_gpu and not capacity.gpus:
        yield document.fault(
            (*path, "args", "device"), "expected workers with GPUs (limits: nvidia.com/gpu), there are none"
        )
        return
    cpus = max((int(group.cpus) for group in capacity.groups), default=1)
    try:
        plan = plan_replica(config, on_gpu=on_gpu, cpus=cpus)
    except ConfigError as err:
        yield document.fault((*path, "args", "gpus_per_replica"), str(err))
        return
    most = config.max_replicas or max(1, config.min_replicas)
    missing = capacity.missing("replicas", most, float(plan.cpus), plan.gpus)
    if missing:
        name = "max_replicas" if config.max_replicas else "min_replicas"
        yield document.fault((*path, "args", name), missing)
        return
    # The endpoint starts once the minimum of workers exists, and only if min_replicas fit on these.
    missing = capacity.at_least().missing("replicas", max(1, config.min_replicas), float(plan.cpus), plan.gpus)
    if missing:
        reason = f"with the minimum of workers (minReplicas), {missing}"
        yield document.fault((*path, "args", "min_replicas"), reason)
