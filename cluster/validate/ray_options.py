"""Checks against the installed Ray: its version, the options of `ray start`, the keys of a runtime environment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version

from cluster.manifests.settings_sources import nearest
from cluster.validate.documents import Document, Fault, Path
from cluster.validate.schema import shown

# Ray's version in our tags (0.1.0-ray2.60.0-cuda), and in the tags of Ray's own images.
RAY_IN_TAG = re.compile(r"ray[-_.]?v?(\d+\.\d+\.\d+)")
RAY_IMAGE = re.compile(r"(?:^|/)rayproject/ray[a-z-]*:(\d+\.\d+\.\d+)")


def check_ray_version(document: Document, path: Path) -> Iterator[Fault]:
    """Yield a fault if the Ray version in a manifest is not the installed one."""
    installed = version("ray")
    got = document.get(*path)
    if got is None:
        yield document.fault(path[:-1], f"missing key {path[-1]!r}, expected {installed!r}, the Ray installed here")
    elif isinstance(got, str) and got != installed:
        yield document.fault(path, f"expected Ray {installed}, the one installed here, got {got}")


def check_image(document: Document, path: Path) -> Iterator[Fault]:
    """Yield a fault if an image has no fixed tag, or its tag names another Ray version than the installed one."""
    image = document.get(*path)
    if not isinstance(image, str):
        return
    if not re.fullmatch(r"[\w.:/@-]+", image):
        yield document.fault(path, f"expected the name of an image, got {image!r}")
        return
    tag = image.rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest", "nightly"):
        got = f"tag {tag!r}" if tag else "no tag"
        yield document.fault(path, f"expected a fixed tag, got {got} ({image}): its Ray version would be unknown")
        return
    found = RAY_IMAGE.search(image) or RAY_IN_TAG.search(tag)
    if found and found.group(1) != version("ray"):
        yield document.fault(path, f"expected an image with Ray {version('ray')}, got {found.group(1)} ({image})")


@cache
def start_options() -> frozenset[str]:
    """Return the options of `ray start`, without leading dashes."""
    from ray.scripts.scripts import start

    return frozenset(name.lstrip("-") for option in start.params for name in (*option.opts, *option.secondary_opts))


def check_runtime_env(document: Document, path: Path) -> Iterator[Fault]:
    """Yield keys and values of a runtime environment that Ray would ignore or refuse."""
    value = document.get(*path)
    if value is None:
        return
    if not isinstance(value, dict):
        yield document.fault(path, f"expected a mapping with keys as working_dir, env_vars or pip, got {shown(value)}")
        return
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")} | {"nsight", "rocprof_sys"}
    faults = [(name, nearest(str(name), known)) for name in value if name not in known]
    for name, near in faults:
        yield document.fault((*path, str(name)), f"unknown key {name!r}{near}")
    config = value.get("config")
    for name in config if isinstance(config, dict) else ():
        if name not in RuntimeEnvConfig.known_fields:
            near = nearest(str(name), RuntimeEnvConfig.known_fields)
            yield document.fault((*path, "config", str(name)), f"unknown key {name!r}{near}")
            faults.append((name, ""))
    if not faults:
        yield from _ray_faults(document, path, value)


def _ray_faults(document: Document, path: Path, value: dict[str, object]) -> Iterator[Fault]:
    from ray.runtime_env import RuntimeEnv

    env_vars = value.get("env_vars")
    for name, text in (env_vars if isinstance(env_vars, dict) else {}).items():
        if not isinstance(text, str):
            yield document.fault(
                (*path, "env_vars", str(name)), f"expected text, got {shown(text)}; write it in quotes"
            )
            return
    # Local files and folders of the submitting machine need not exist here.
    remote = {key: item for key, item in value.items() if key not in ("working_dir", "py_modules", "excludes")}
    try:
        RuntimeEnv(**remote)  # the constructor validates
    except Exception as err:  # noqa: BLE001 (Ray raises several types)
        yield document.fault(path, " ".join(str(err).split())[:300])
