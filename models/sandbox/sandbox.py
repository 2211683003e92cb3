"""Try a model's file in a child process, which may crash, hang or fill its memory without harm to this process.

The catalog's files are known by their SHA-256 and need no trial. Any other file is parsed, joined, loaded and run once
in the child, and only then loaded here. The child's graph is cached (`models.graph.cache`): each file is tried once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import models.errors
from models.errors import ArtifactError, ModelError, ShardlabelError
from models.spec import ModelSpec

# A trial takes 1 to 3 s for a file of 50 MB, and 60 s for 2 GB.
TIMEOUT_S = 120.0
# Address space, which exceeds memory: Python, ONNX and ONNX Runtime take 2 GiB of it before any model.
BASE_BYTES = 6 * 2**30
BYTES_PER_MODEL_BYTE = 10


def try_join(spec: ModelSpec, path: Path, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """Build a model's joined graph, load it and run it once, all in a child process; return the graph.

    Raises:
        ArtifactError: The file is not an ONNX model, is damaged, names other files, or crashed the child.
        SignatureError: It lacks the tensors of its entry, or ONNX Runtime cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="shardlabel-") as folder:
        out = Path(folder) / "joined.onnx"
        request = {"task": "join", "path": str(path.absolute()), "spec": spec.model_dump(mode="json"), "out": str(out)}
        run_trial(request, path, timeout_s=timeout_s)
        return out.read_bytes()


def read_signature(path: Path) -> dict[str, list[str]]:
    """Return a model file's inputs and outputs as ONNX Runtime reports them.

    Raises:
        ArtifactError: The file is not an ONNX model, is damaged, names files outside its folder, or crashed the child.
        SignatureError: ONNX Runtime cannot load it.
    """
    found: dict[str, list[str]] = run_trial({"task": "signature", "path": str(path.absolute())}, path)
    return found


def run_trial(request: dict[str, Any], path: Path, *, timeout_s: float = TIMEOUT_S) -> Any:  # noqa: ANN401 (JSON)
    """Run a task of `models.register.trial_tasks` in a child process, and return its result.

    Args:
        request: The task's name and arguments.
        path: The model's file, for messages and for the limit on memory.
        timeout_s: Seconds until the child is killed.

    Raises:
        ShardlabelError: The error that the child reported.
        ArtifactError: The child crashed, ran out of memory, or timed out.
    """
    size = path.stat().st_size if path.is_file() else 0
    request = {**request, "memory_bytes": BASE_BYTES + BYTES_PER_MODEL_BYTE * size, "seconds": int(timeout_s) + 1}
    # BLAS libraries reserve address space for every thread that they may use.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "models.register.trial_tasks"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired as err:
        raise ArtifactError(f"{path.name} did not load and run one image within {timeout_s:.0f} s") from err
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ArtifactError(_last_words(path, done)) from None
    if "error" in answer:
        raise _error(answer["error"], answer["message"])
    return answer["found"]


def _last_words(path: Path, done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = str(-done.returncode)
        return f"{path.name} crashed the child process that tried to load it ({name}), so it is refused"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{path.name}: the trial run failed: {lines[-1][:300] if lines else f'exit code {done.returncode}'}"


def _error(name: str, message: str) -> ShardlabelError:
    kind = getattr(models.errors, name, ModelError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, ShardlabelError) else ModelError(message)
