"""Replace batch normalisation by the multiplication and addition per channel that it is once a model is trained.

ResNet v2 starts with a batch normalisation of its input. It is merged with the normalisation of the pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Float64Array = npt.NDArray[np.float64]

_EPSILON = 1e-5


def normalization_of(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> tuple[Float64Array, Float64Array] | None:
    """Return a batch normalisation's factor and offset per channel, each float64 of shape (n_channels,).

    Returns None if the node is not a batch normalisation, or its values are not constants.
    """
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    # In training mode it depends on the batch, and has more than one output.
    if attributes.get("training_mode", 0) or len([name for name in node.output if name]) != 1:
        return None
    if not all(name in constants for name in node.input[1:5]):
        return None
    gamma, beta, mean, variance = (
        numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:5]
    )
    factor = gamma / np.sqrt(variance + attributes.get("epsilon", _EPSILON))
    offset = beta - mean * factor
    return (factor, offset) if np.isfinite(factor).all() and np.isfinite(offset).all() else None


def take_first_normalization(
    graph: onnx.GraphProto, name: str, factor: Float64Array, offset: Float64Array
) -> tuple[str, Float64Array, Float64Array]:
    """Remove the batch normalisation at the start of a model, and merge it into the factor and offset before it.

    Args:
        graph: The model's graph; changed if it starts with a batch normalisation.
        name: Its input, channels first, which is pixel * factor + offset.
        factor: float64 of shape (3,).
        offset: float64 of shape (3,).

    Returns:
        The tensor to feed instead, with its factor and offset; the arguments unchanged if nothing was removed.
    """
    readers = [node for node in graph.node if name in node.input]
    if len(readers) != 1 or has_bodies(graph) or any(output.name == name for output in graph.output):
        return name, factor, offset
    values = normalization_of(readers[0], {tensor.name: tensor for tensor in graph.initializer})
    if values is None or readers[0].input[0] != name or values[0].shape != factor.shape:
        return name, factor, offset
    graph.node.remove(readers[0])
    return readers[0].output[0], factor * values[0], offset * values[0] + values[1]


def has_bodies(graph: onnx.GraphProto) -> bool:
    """Tell whether a graph has control flow, whose bodies may read any tensor without listing it as an input."""
    return any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)


def convolve_normalizations(model: onnx.ModelProto) -> list[str]:
    """Turn batch normalisations into 1 x 1 depthwise convolutions, which are quantised channel by channel.

    ONNX Runtime's quantiser keeps a batch normalisation in floats, between two conversions, and rounds its gammas to
    8 bits with one scale for all channels.

    Args:
        model: float32, with the shapes of its tensors, after all that can be was folded into convolutions; changed.

    Returns:
        Names of the nodes that must stay float: batch normalisations that read the model's input. The joined graph
        merges them with the normalisation of the pixels.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*graph.input, *graph.value_info]
        if value.type.tensor_type.HasField("shape")
    }
    inputs = {value.name for value in graph.input}
    first = []
    for node in graph.node:
        values = normalization_of(node, constants)
        if values is None:
            continue
        if node.input[0] in inputs:
            first.append(node.name)
        elif ranks.get(node.input[0]) == len("NCHW"):
            weight, bias = f"{node.output[0]}_weight", f"{node.output[0]}_bias"
            factor, offset = (value.astype(np.float32) for value in values)
            graph.initializer.extend(
                [numpy_helper.from_array(factor.reshape(-1, 1, 1, 1), weight), numpy_helper.from_array(offset, bias)]
            )
            node.CopyFrom(
                helper.make_node(
                    "Conv",
                    [node.input[0], weight, bias],
                    list(node.output),
                    name=node.name,
                    group=len(factor),
                    kernel_shape=[1, 1],
                )
            )
    if not has_bodies(graph):
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        weights = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(weights)
    return first
