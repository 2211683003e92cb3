"""Batch normalisation, as the multiplication and addition per channel that it is once a model is trained.

ResNet v2 normalises its input by one before it does anything else: that and our own normalisation are one.
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
    """Return what a node multiplies each channel by, and what it adds then, each float64 of shape (n_channels,).

    None if it is no batch normalisation, or one that does not know these values before it runs.
    """
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    # In training it reads the batch; it gives more than one output then.
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
    """Remove the batch normalisation that a model begins with.

    Args:
        graph: Of the model; changed where there is one.
        name: Its input, channels first, which is pixel * factor + offset.
        factor: float64 of shape (3,).
        offset: float64 of shape (3,).

    Returns:
        The tensor to give instead, and its own factor and offset; what came in where anything else reads the input.
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
    """Say whether a graph has control flow: its bodies may read any tensor without naming it as an input."""
    return any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)


def convolve_normalizations(model: onnx.ModelProto) -> list[str]:
    """Turn batch normalisations into depthwise convolutions of one pixel, which are quantised channel by channel.

    ONNX Runtime's quantiser knows a batch normalisation only in floats, between two conversions, and rounds its gammas to
    8 bits of one scale for all channels.

    Args:
        model: float32, with the shapes of its tensors; changed. What could be folded into a convolution was.

    Returns:
        Names of the nodes that are to stay as they are: of a batch normalisation that reads the model's input, which is
        one with the normalisation of pixels in the joined graph.
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
