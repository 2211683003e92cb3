"""Find out what a cluster's Python has: which shardlabel, and which of its dependencies.

`shardlabel submit` runs this file's text on the cluster as a job, whose log then has one line of JSON. It imports only
the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

PACKAGES = ("cluster", "models", "pipeline", "serve")
# Never sent: model weights, test vectors, sample images and compiled files.
LEFT_OUT_SUFFIXES = (".onnx", ".npz", ".pyc", ".so")
LEFT_OUT_FOLDERS = ("__pycache__", "samples")
# Modules that a run imports. Their packages are those of pyproject.toml.
NEEDED = (
    "ray",
    "aiohttp",
    "onnxruntime",
    "onnx",
    "numpy",
    "obstore",
    "PIL",
    "simplejpeg",
    "pyarrow",
    "pydantic",
    "typer",
    "yaml",
    "filelock",
    "jinja2",
    "markupsafe",
    "orjson",
    "requests",
    "rich",
    "tomli_w",
    "urllib3",
    "yarl",
)
MARK = "shardlabel-probe "


def code_files(root: Path) -> dict[str, Path]:
    """Return the files of the project's code by their path below `root`, sorted."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            below = path.relative_to(root)
            if path.suffix in LEFT_OUT_SUFFIXES or any(part in LEFT_OUT_FOLDERS for part in below.parts):
                continue
            if path.is_file():
                found[below.as_posix()] = path
    return dict(sorted(found.items()))


def code_digest(root: Path) -> str:
    """Return a SHA-256 over the names and contents of the code."""
    whole = hashlib.sha256()
    for name, path in code_files(root).items():
        content = path.read_bytes()
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


def installed_root() -> Path | None:
    """Return the folder that this Python would import the project from, or None."""
    spec = importlib.util.find_spec("models")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        root = Path(folder).parent
        if all((root / package / "__init__.py").is_file() for package in PACKAGES):
            return root
    return None


def probe() -> dict[str, object]:
    """Return the path and version of this Python, its missing modules, and the shardlabel that it has."""
    root = installed_root()
    return {
        "python": sys.executable,
        "version": ".".join(str(part) for part in sys.version_info[:3]),
        "missing": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        "digest": code_digest(root) if root else None,
        "artifacts": str(root / "models" / "artifacts") if root else None,
    }


if __name__ == "__main__":
    sys.stdout.write(MARK + json.dumps(probe()) + "\n")
