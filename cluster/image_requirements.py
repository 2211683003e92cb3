"""Print the pinned packages that an image installs before the project: `python cluster/image_requirements.py cpu|cuda`.

A bare Python runs this in the image build, so it imports only the standard library. The CPU image gets ONNX Runtime's
CPU build, which the wheel's metadata cannot ask for on Linux: pip cannot tell whether there is a GPU.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Libraries that ONNX Runtime's CUDA build loads at run time, in the versions that its metadata asks for.
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
    """Return the sorted requirement lines for pip.

    Args:
        target: cpu or cuda.
        pyproject: Path of pyproject.toml.
        constraints: Path of constraints.txt, which holds the locked versions.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = [line for line in project["dependencies"] if not line.startswith("onnxruntime")]
    name = "onnxruntime-gpu" if target == "cuda" else "onnxruntime"
    lines.append(f"{name}=={locked_version('onnxruntime-gpu', constraints)}")
    return sorted([*lines, *(CUDA if target == "cuda" else ())])


def locked_version(name: str, constraints: Path) -> str:
    """Return the locked version of a package."""
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{constraints} does not lock {name}")
    return found.group(1)


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["cuda"]):
        raise SystemExit(f"expected cpu or cuda, got {' '.join(sys.argv[1:]) or 'nothing'}")
    sys.stdout.write("\n".join(requirements(sys.argv[1], ROOT / "pyproject.toml", ROOT / "constraints.txt")) + "\n")
