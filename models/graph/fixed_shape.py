"""Fix the number of labels in the joined graph, for GPUs.

ONNX Runtime's IOBinding does not accept inputs with a default, such as `k` (1.31: "Failed to find NodeArg"). And ONNX
Runtime folds a fixed value, so that nothing has to be copied from the CPU in the middle of a run.
"""

from __future__ import annotations


def fix_top_k(graph: bytes, top_k: int) -> bytes:
    """Return the joined graph without its input `k`; it always returns `top_k` labels."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    inputs = [value for value in model.graph.input if value.name != "k"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for weight in model.graph.initializer:
        if weight.name == "k":
            weight.CopyFrom(numpy_helper.from_array(np.asarray([top_k], np.int64), "k"))
    return bytes(model.SerializeToString())
