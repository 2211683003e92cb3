"""Feed pixels straight to a quantised model, without converting them to floats and back.

If a model was quantised on images normalised by a single mean and deviation, its first step is, to the last bit, the
inverse of the normalisation: EfficientNet-Lite0 normalises by (pixel - 127) / 128, and quantises by
round(value * 128) + 127. This saves four passes over an image's 600 kB of floats, and no bit of the labels changes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from models.graph.batchnorm import has_bodies

# Largest distance of the unrounded quantised value from the pixel: far below 0.5, so it always rounds to the pixel.
_TOLERANCE = 0.1


def take_needless_quantisers(
    graph: onnx.GraphProto, name: str, factor: npt.NDArray[np.float32], offset: npt.NDArray[np.float32]
) -> list[str]:
    """Remove the nodes that quantise a normalised input back to its pixels.

    Args:
        graph: The model's graph; changed if nodes are removed.
        name: Its input.
        factor: float32 of shape (3,): the input is pixel * factor + offset.
        offset: float32 of shape (3,).

    Returns:
        The outputs of the removed nodes, which must be fed with the pixels; empty, with the graph unchanged, if other
        nodes read the input or the quantised values are not the pixels.
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
