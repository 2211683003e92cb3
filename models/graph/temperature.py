"""Divide the logits of a joined graph by a temperature: the same labels in the same order, with calibrated scores."""

from __future__ import annotations

from models.errors import SignatureError

# Part of the cache's key: raise it when the change to the graph changes.
TEMPERATURE_VERSION = 1
_PREFIX = "shardlabel_"
# The smallest normal float32, so that the logarithm of a probability of 0 is finite.
_TINY = 1.1754943508222875e-38


def divide_logits(graph: bytes, temperature: float) -> bytes:
    """Return the joined graph (see `models.graph.join`) with calibrated probabilities and scores.

    `top_ids` do not change: the best classes are chosen as before, and then get their calibrated scores. So rounding
    cannot swap two labels. If a model outputs probabilities, their logarithms serve as logits: they differ from the
    logits by a constant, which softmax cancels.

    Args:
        graph: A graph made by `join_graph`, float16 or not.
        temperature: Above 0; a temperature above 1 makes scores less confident.

    Raises:
        SignatureError: The graph was not made by `join_graph`.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    nodes = model.graph.node
    softmax = next((node for node in nodes if "probabilities" in node.output), None)
    top_k = next((node for node in nodes if "top_scores" in node.output), None)
    if softmax is None or top_k is None:
        raise SignatureError("a graph without probabilities and top_scores cannot be calibrated")
    # The former outputs are renamed; they still choose the labels.
    uncalibrated = f"{_PREFIX}uncalibrated"
    logits = softmax.input[0] if softmax.op_type == "Softmax" else f"{_PREFIX}log_probabilities"
    softmax.output[0] = top_k.input[0] = uncalibrated
    top_k.output[0] = f"{_PREFIX}uncalibrated_scores"
    if softmax.op_type != "Softmax":
        nodes.append(helper.make_node("Max", [uncalibrated, f"{_PREFIX}tiny"], [f"{_PREFIX}positive"]))
        nodes.append(helper.make_node("Log", [f"{_PREFIX}positive"], [logits]))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(_TINY), f"{_PREFIX}tiny"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(temperature), f"{_PREFIX}temperature"))
    nodes.append(helper.make_node("Div", [logits, f"{_PREFIX}temperature"], [f"{_PREFIX}divided"]))
    nodes.append(helper.make_node("Softmax", [f"{_PREFIX}divided"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("GatherElements", ["probabilities", "top_ids"], ["top_scores"], axis=1))
    return bytes(model.SerializeToString())
