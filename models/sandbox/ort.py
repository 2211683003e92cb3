"""Load and run an untrusted model; failures of ONNX Runtime become the project's errors."""

from __future__ import annotations

from typing import Any

from models.errors import ArtifactError, SignatureError


def load_session(name: str, model: bytes) -> Any:  # noqa: ANN401 (untyped library)
    """Load a model on the CPU, with one thread.

    Raises:
        ArtifactError: The model needs too much memory.
        SignatureError: ONNX Runtime cannot load it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as err:
        _refuse(name, "load", err)
        raise


def run_session(name: str, session: Any, names: list[str] | None, feed: dict[str, Any]) -> list[Any]:  # noqa: ANN401
    """Run a model once; raises the same errors as `load_session`."""
    try:
        return list(session.run(names, feed))
    except Exception as err:
        _refuse(name, "run", err)
        raise


def _refuse(name: str, verb: str, err: Exception) -> None:
    text = " ".join(str(err).split())
    lower = text.lower()
    if isinstance(err, MemoryError) or "bad_alloc" in lower or "failed to allocate memory" in lower:
        raise ArtifactError(f"{name} needs more memory than its size allows: {text[:300]}") from err
    raise SignatureError(f"ONNX Runtime cannot {verb} {name}: {text[:500]}") from err
