"""Check that a model's file computes what its publisher says, by the zoo's own test vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.errors import ArtifactError
from models.sandbox.ort import load_session, run_session
from models.spec import ModelSpec, Precision

VECTORS = Path(__file__).parents[1] / "entries"
# The tolerance of the zoo's own tests.
TOLERANCE = 1e-3


def check_test_vector(spec: ModelSpec, precision: Precision, path: Path) -> str | None:
    """Run the test vector that lies beside the model's entry, and compare the outputs.

    Returns:
        A sentence with the largest difference, or None if the catalog has no vector for this file.

    Raises:
        ArtifactError: An output differs by more than TOLERANCE.
        SignatureError: ONNX Runtime cannot load or run the file.
    """
    vector = VECTORS / f"{spec.name}.test-vector.npz"
    if precision is not Precision.FP32 or not vector.is_file():
        return None
    with np.load(vector) as arrays:
        given, expected = arrays["input"], arrays["output"]
    session = load_session(path.name, path.read_bytes())
    (output,) = run_session(path.name, session, [spec.output.name], {spec.input.name: given})
    difference = float(np.abs(output - expected).max())
    if not np.allclose(output, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise ArtifactError(
            f"{spec.name} fails the zoo's test vector: largest difference {difference:.3g}, expected at most "
            f"{TOLERANCE:g}; the file or this ONNX Runtime differs from what the zoo tested"
        )
    return f"passes the zoo's test vector: largest difference {difference:.2g} of {TOLERANCE:g} allowed"
