"""The joined graph with its number of labels fixed, for GPUs.

ONNX Runtime's IOBinding does not take inputs that have a default, as `k` is (1.31: "Failed to find NodeArg"); and what is
fixed is folded, so that no value has to come from the CPU in the middle of a run.
"""

from __future__ import annotations


def fix_top_k(graph: bytes, top_k: int) -> bytes:
    """Return the joined graph without its input `k`, giving `top_k` labels always."""
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
