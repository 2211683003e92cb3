"""What a unit's rows were computed with: recorded, and not compared at a resume."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Whose versions may change the last bits of a score, a pixel, or the bytes of a file.
_PACKAGES = ("shardlabel", "onnxruntime", "onnxruntime-gpu", "pyarrow", "pillow", "simplejpeg", "cykooz.resizer")


@cache
def made_by() -> str:
    """Return the versions that count here, and the kind of CPU, in one line."""
    found = []
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join([*found, _cpu()])


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
