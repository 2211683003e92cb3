"""The joined graph with its logits divided by a temperature: calibrated scores of the same labels, in the same order."""

from __future__ import annotations

from models.errors import SignatureError

# Part of the cache's key: raise it when what is done to the graph changes.
TEMPERATURE_VERSION = 1
_PREFIX = "shardlabel_"
# The least normal float32, so that the logarithm of a probability of 0 is a number.
_TINY = 1.1754943508222875e-38


def divide_logits(graph: bytes, temperature: float) -> bytes:
    """Return the joined graph (see `models.graph.join`) with calibrated probabilities and scores.

    `top_ids` are untouched: the best classes are chosen as before, and then given their calibrated scores. So rounding
    cannot turn two labels around. Of a model that gives probabilities the logits are their logarithms, which is the same up
    to a number that softmax takes out again.

    Args:
        graph: As `join_graph` made it, float16 or not.
        temperature: Above 0; more than 1 makes scores less sure.

    Raises:
        SignatureError: The graph is none of ours.
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
    # What was the outputs becomes what the labels are chosen by.
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
