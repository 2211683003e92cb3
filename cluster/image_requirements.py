"""What an image installs before the project itself, pinned: `python cluster/image_requirements.py cpu|cuda`.

Run while an image is built, by a bare Python: nothing of the project and no other package is imported. The CPU image
takes the CPU build of ONNX Runtime, which the wheel's own metadata cannot ask for on Linux: pip knows no GPUs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What ONNX Runtime's CUDA build loads at run time, of the versions that its metadata asks for.
CUDA = (
    "nvidia-cublas==13.10.0.20",
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cudnn-cu13==9.28.1.4",
    "nvidia-cufft==12.5.0.14",
    "nvidia-curand==10.4.5.25",
    "nvidia-nvjitlink==13.5.37",
)


def requirements(target: str, pyproject: Path, constraints: Path) -> list[str]:
    """Return lines for pip.

    Args:
        target: cpu or cuda.
        pyproject: The project's description.
        constraints: The locked versions.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = [line for line in project["dependencies"] if not line.startswith("onnxruntime")]
    name = "onnxruntime-gpu" if target == "cuda" else "onnxruntime"
    lines.append(f"{name}=={locked_version('onnxruntime-gpu', constraints)}")
    return sorted([*lines, *(CUDA if target == "cuda" else ())])


def locked_version(name: str, constraints: Path) -> str:
    """Return the version that a package is locked to."""
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{constraints} does not lock {name}")
    return found.group(1)


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["cuda"]):
        raise SystemExit(f"expected cpu or cuda, got {' '.join(sys.argv[1:]) or 'nothing'}")
    sys.stdout.write("\n".join(requirements(sys.argv[1], ROOT / "pyproject.toml", ROOT / "constraints.txt")) + "\n")
