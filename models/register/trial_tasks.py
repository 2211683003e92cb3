"""The child process of `models.sandbox.sandbox`: a task on standard input, an answer on standard output, both JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from models.errors import ShardlabelError, SignatureError
from models.sandbox.ort import load_session, run_session
from models.spec import ModelSpec


def main() -> int:
    """Answer one request; the exit code is 0 even if the model is refused."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what native code prints out of the answer
    request = json.load(sys.stdin)
    _limit(request["memory_bytes"], request["seconds"])
    try:
        answer: dict[str, Any] = {"found": TASKS[request["task"]](request)}
    except ShardlabelError as err:
        answer = {"error": type(err).__name__, "message": str(err)}
    except MemoryError:
        answer = _too_much(request)
    json.dump(answer, answers)
    answers.close()
    # Exits without cleanup, where a damaged native state could crash.
    os._exit(0)


def _limit(memory_bytes: int, seconds: int) -> None:
    """Limit the memory and CPU time of this process, if the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (4 * seconds, 4 * seconds))


def _too_much(request: dict[str, Any]) -> dict[str, str]:
    name, limit = Path(request["path"]).name, request["memory_bytes"] / 2**30
    return {"error": "ArtifactError", "message": f"{name} needs more than the {limit:.0f} GiB that its size allows"}


def _join(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from models.graph.join import join_graph
    from models.sandbox.untrusted_onnx import read_model

    spec, path = ModelSpec.model_validate(request["spec"]), Path(request["path"])
    read_model(path)
    joined = join_graph(spec, path.read_bytes())
    session = load_session(path.name, joined)
    side, rows = spec.preprocessing.crop, spec.input.batch or 2
    feed = {"images": np.zeros((rows, side, side, 3), np.uint8), "k": np.ones(1, np.int64)}
    (probabilities,) = run_session(path.name, session, ["probabilities"], feed)
    if probabilities.shape[0] != rows:
        raise SignatureError(
            f"{path.name} returned {probabilities.shape[0]} rows for {rows} images; if its batch axis is fixed, set "
            "input.batch in the entry"
        )
    Path(request["out"]).write_bytes(joined)
    return {"classes": int(probabilities.shape[1])}


def _signature(request: dict[str, Any]) -> dict[str, list[str]]:
    from models.sandbox.untrusted_onnx import read_model

    path = Path(request["path"])
    session = load_session(path.name, read_model(path, external=True).SerializeToString())
    return {
        kind: [f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in tensors]
        for kind, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }


def _examine(request: dict[str, Any]) -> dict[str, Any]:
    from models.register.inspect_model import examine

    return examine(request)


TASKS = {"join": _join, "signature": _signature, "examine": _examine}

if __name__ == "__main__":
    sys.exit(main())
