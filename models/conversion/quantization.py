"""Static int8 quantisation that gives the same bits on every x86-64 CPU with AVX2.

uint8 activations times int8 weights (U8S8) is the combination that ONNX Runtime runs fastest. But a CPU without VNNI
(AMD before Zen 4; Intel before Cascade Lake and Ice Lake) multiplies neighbours two at a time and adds each two
products in 16 bits, where 2 * 255 * 127 does not fit: the sum is cut off, without a word. On an emulated Haswell
EfficientNet-Lite0 lost 4 points of top-1 that way, and probabilities moved by up to 0.55.

So weights are scaled such that no pair can overflow: down by 1.2 on average where the pairs are known, by 2 elsewhere.
ONNX Runtime's own ways out are `reduce_range`, which is 2 everywhere, depthwise kernels included, and
`session.x64quantprecision`, 2.4 times slower on CPUs that have VNNI too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

INT8_MAX = 127
# 255 * 128 = 32640 is the most that still fits in a signed 16-bit sum.
PAIR_MAX = 128


class _Batches:
    """The calibration images, as ONNX Runtime asks for them: one batch a call, then None."""

    def __init__(self, input_name: str, batches: Iterable[Float32Array]) -> None:
        self._input_name = input_name
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Float32Array] | None:
        """Return the next feed."""
        batch = next(self._batches, None)
        return None if batch is None else {self._input_name: batch}


def quantize_int8(
    model: onnx.ModelProto, batches: Iterable[Float32Array], *, float_ops: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantise a classifier: QDQ, uint8 activations between the smallest and largest seen, int8 weights per channel.

    Args:
        model: A float32 model of opset 13 or later, with one input and batch normalisation folded.
        batches: Calibration images as the model takes them, float32 of shape (n_images, ...).
        float_ops: Kinds of node that stay float32, such as "ReduceMean".

    Returns:
        The int8 model; same inputs and outputs. What a `Gemm` gives is left in float32, for it is mostly the logits.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / name for name in ("model.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(model, source)
        # Symbolic shapes matter to transformers alone, and would need sympy.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            str(prepared),
            str(target),
            _Batches(model.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=False,
            nodes_to_exclude=[node.name for node in graph.node if node.op_type in float_ops],
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": _weight_ranges(graph, QuantType.QInt8),
            },
        )
        return onnx.load(target)


def _weight_ranges(graph: onnx.GraphProto, int8: Any) -> dict[str, list[dict[str, Any]]]:  # noqa: ANN401 (an enum of ONNX Runtime)
    """Give each weight that ends in a matrix product the range, per output channel, that no pair overflows."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranges = {}
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]].astype(np.float64)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            axis, scales = 0, _conv_scales(weight, attributes.get("group", 1))
        elif attributes.get("transB", 0):
            axis, scales = 0, pair_safe_scales(weight)
        else:
            axis, scales = 1, pair_safe_scales(weight.T)
        if scales is not None:
            limits = (INT8_MAX * scales).astype(np.float32)
            ranges[node.input[1]] = [
                {"quant_type": int8, "axis": axis, "symmetric": True, "rmin": -limit, "rmax": limit} for limit in limits
            ]
    return ranges


def _conv_scales(weight: Float64Array, group: int) -> Float64Array | None:
    """Return the scale of each output channel of a convolution, or None where any is safe.

    A depthwise kernel adds in 32 bits. A pointwise one is a matrix product over the input channels. Of the others
    the order depends on the kernel that ONNX Runtime takes: there half the range makes any pair safe.
    """
    n_channels, n_inputs = weight.shape[:2]
    rows = weight.reshape(n_channels, -1)
    if group == n_channels and n_inputs == 1:
        return None
    if group == 1 and rows.shape[1] == n_inputs:
        return pair_safe_scales(rows)
    return _largest(rows) / (PAIR_MAX // 2)


def pair_safe_scales(rows: Float64Array) -> Float64Array:
    """Choose each row's int8 scale, the smallest (nearly) at which no pair of neighbours overflows 16 bits.

    Args:
        rows: float64 of shape (n_channels, n_inputs), in the order in which they are multiplied.

    Returns:
        float64 of shape (n_channels,). Where q = rint(row / scale): |q| <= 127, and for columns 2i and 2i + 1 of one
        sign |q + q'| <= 128.
    """
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = even.reshape(len(rows), -1, 2)  # (n_channels, n_pairs, 2)
    scales = np.maximum(_largest(rows) / INT8_MAX, _largest(_pair_sums(pairs)) / PAIR_MAX)
    # Rounding both of a pair up can pass the limit by 1: then the scale grows by steps of 0.1 %.
    while True:
        quantized = np.rint(pairs / scales[:, None, None])
        too_much = _largest(_pair_sums(quantized)) > PAIR_MAX
        if not too_much.any():
            return scales
        scales[too_much] *= 1.001


def _pair_sums(pairs: Float64Array) -> Float64Array:
    """Return what each pair adds up to at worst: (n_channels, n_pairs). Of two signs, each alone is the worst."""
    first, second = pairs[..., 0], pairs[..., 1]
    sums: Float64Array = np.where(first * second > 0, first + second, 0.0)
    return sums


def _largest(rows: Float64Array) -> Float64Array:
    """Return the largest magnitude of each row; never 0, to be divided by."""
    largest: Float64Array = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    return largest
