"""What a unit's rows were computed with: recorded, but not compared on resume."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Packages whose versions may change the last bits of a score or a pixel, or the bytes of a file.
_PACKAGES = ("shardlabel", "onnxruntime", "onnxruntime-gpu", "pyarrow", "pillow", "simplejpeg", "cykooz.resizer")


@cache
def made_by() -> str:
    """Return the versions of these packages and the CPU model, in one line."""
    found = [f"{name} {number}" for name, number in versions(_PACKAGES).items()]
    return ", ".join([*found, cpu_model()])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_model() -> str:
    """Return the CPU's model name, or its architecture."""
    return cpu_info().get("model name", platform.machine())


def cpu_info() -> dict[str, str]:
    """Return what Linux reports about the last CPU; {} elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
