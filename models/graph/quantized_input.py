"""Spare a quantised model the way from pixels to floats and back.

A model that was quantised on images normalised by one mean and one deviation has a first step that is, to the last bit,
the inverse of the normalisation: EfficientNet-Lite0 normalises by (pixel - 127) / 128, and quantises by
round(value * 128) + 127. Four passes over an image's 600 kB of floats are saved, and no bit of the labels changes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from models.graph.batchnorm import has_bodies

# Between a pixel and what quantising gives before it is rounded: so far from 0.5, no way of computing it rounds elsewhere.
_TOLERANCE = 0.1


def take_needless_quantisers(
    graph: onnx.GraphProto, name: str, factor: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]
) -> list[str]:
    """Remove the nodes that quantise a normalised input to the very pixels that it was made of.

    Args:
        graph: Of the model; changed where something is returned.
        name: Its input.
        factor: float32 of shape (3,): the input is pixel * factor + offset.
        offset: float32 of shape (3,).

    Returns:
        What they gave, and what the pixels are to be called now; nothing where anything else reads the input, or the
        quantised values are others.
    """
    readers = [node for node in graph.node if name in node.input]
    if not readers or has_bodies(graph) or any(output.name == name for output in graph.output):
        return []
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if not all(_gives_pixels_back(node, constants, factor, offset) for node in readers):
        return []
    given = [node.output[0] for node in readers]
    for node in readers:
        graph.node.remove(node)
    return given


def _gives_pixels_back(
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    factor: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
) -> bool:
    if node.op_type != "QuantizeLinear" or node.domain not in ("", "ai.onnx") or len(node.input) != 3:
        return False
    if not all(each in constants for each in node.input[1:]):
        return False
    scale, zero_point = (numpy_helper.to_array(constants[each]) for each in node.input[1:])
    if scale.size != 1 or zero_point.size != 1 or zero_point.dtype != np.uint8:
        return False
    pixels = np.arange(256, dtype=np.float32)[:, np.newaxis]
    quantised = (pixels * factor + offset) / scale.astype(np.float32) + zero_point.astype(np.float32)
    return bool(np.abs(quantised - pixels).max() < _TOLERANCE)
