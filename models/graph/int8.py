"""Static int8 quantisation that gives the same bits on every x86-64 CPU with AVX2.

uint8 activations times int8 weights (U8S8) is the combination that ONNX Runtime runs fastest. But a CPU without VNNI
(AMD before Zen 4; Intel before Cascade Lake and Ice Lake) multiplies neighbours two at a time and adds the two products
in 16 bits, where 2 * 255 * 127 does not fit: the sum saturates silently. On an emulated Haswell EfficientNet-Lite0 lost
4 points of top-1 that way, and probabilities moved by up to 0.55.

So weights are scaled such that no pair can overflow: down by 1.2 on average where the pairs are known, by 2 elsewhere.
ONNX Runtime's own remedies are `reduce_range`, which scales by 2 everywhere, depthwise kernels included, and
`session.x64quantprecision`, which is 2.4 times slower, also on CPUs with VNNI.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, version_converter

from models.graph.batchnorm import convolve_normalizations
from models.sandbox.untrusted_onnx import opset_of

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

INT8_MAX = 127
# The largest safe sum of two weights: 255 * 128 = 32640 still fits in a signed 16-bit sum.
PAIR_MAX = 128
# The first opset with QuantizeLinear per channel.
QDQ_OPSET = 13
TARGET_OPSET = 17
PERCENTILE = 99.99
STRIDE = 8


class _Batches:
    """The calibration images as ONNX Runtime reads them: one batch a call, then None; a range of them if one is set."""

    def __init__(self, input_name: str, batches: list[Float32Array]) -> None:
        self._input_name = input_name
        self._batches = batches
        self._next, self._end = 0, len(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with the batches of this range."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Float32Array] | None:
        """Return the next feed."""
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._input_name: self._batches[self._next - 1]}


class RangeMethod(StrEnum):
    """How the range of an activation is chosen from the values observed."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


def quantize_int8(
    model: onnx.ModelProto,
    batches: Iterable[Float32Array],
    *,
    float_ops: Collection[str] = (),
    method: RangeMethod = RangeMethod.MINMAX,
) -> onnx.ModelProto:
    """Quantise a classifier: QDQ format, uint8 activations with a calibrated range, int8 weights per channel.

    Args:
        model: A float32 model with one input.
        batches: Calibration images as the model takes them: float32 of shape (n_images, ...).
        float_ops: Kinds of node that stay float32, such as "ReduceMean".
        method: How the range is chosen: the smallest and largest value observed; the range without the outermost
            0.01 %; or the range that loses the least information (entropy).

    Returns:
        The int8 model, with the same inputs and outputs. Outputs of `Gemm` stay float32, since they are mostly logits.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        RangeMethod.MINMAX: CalibrationMethod.MinMax,
        RangeMethod.PERCENTILE: CalibrationMethod.Percentile,
        RangeMethod.ENTROPY: CalibrationMethod.Entropy,
    }
    feeds = list(batches)
    if method is not RangeMethod.MINMAX and len(feeds) > STRIDE:
        feeds = feeds[: len(feeds) // STRIDE * STRIDE]
    stride = min(STRIDE, len(feeds))
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / name for name in ("model.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(_upgraded(model), source)
        # Folds batch normalisation. Only transformers need symbolic shapes, which would require sympy.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        ready = _named(onnx.load(prepared))
        float_nodes = convolve_normalizations(ready)
        float_nodes += [node.name for node in ready.graph.node if node.op_type in float_ops]
        onnx.save(ready, prepared)
        with contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints what it does
            quantize_static(
                str(prepared),
                str(target),
                _Batches(_input_name(model), feeds),
                quant_format=QuantFormat.QDQ,
                calibrate_method=methods[method],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=False,
                nodes_to_exclude=float_nodes,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],
                    "TensorQuantOverrides": _weight_ranges(ready.graph, QuantType.QInt8),
                    "CalibPercentile": PERCENTILE,
                    # Histograms keep every value of a stride; for all images at once that would be gigabytes.
                    **({} if method is RangeMethod.MINMAX else {"CalibStridedMinMax": stride}),
                },
            )
        return onnx.load(target)


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model if its opset has no int8 per channel; remove weights from the inputs, as old files list them."""
    if opset_of(model) < QDQ_OPSET:
        model = version_converter.convert_version(model, TARGET_OPSET)
    else:
        model = onnx.ModelProto.FromString(model.SerializeToString())
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    return model


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name every node that has no name: nodes are excluded by name, and "" would exclude all unnamed ones."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            node.name = name if name not in taken else f"{name}_unnamed"
    return model


def _input_name(model: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in model.graph.initializer}
    return next(str(one.name) for one in model.graph.input if one.name not in weights)


def _weight_ranges(graph: onnx.GraphProto, int8: Any) -> dict[str, list[dict[str, Any]]]:  # noqa: ANN401 (an enum of ONNX Runtime)
    """Return, for each weight of a matrix product, the range per output channel in which no pair overflows."""
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
    """Return the scale of each output channel of a convolution, or None if any scale is safe.

    A depthwise kernel adds in 32 bits. A pointwise kernel is a matrix product over the input channels. For other
    convolutions the order depends on the kernel that ONNX Runtime chooses; half the range makes any pair safe.
    """
    n_channels, n_inputs = weight.shape[:2]
    rows = weight.reshape(n_channels, -1)
    if group == n_channels and n_inputs == 1:
        return None
    if group == 1 and rows.shape[1] == n_inputs:
        return pair_safe_scales(rows)
    return _largest(rows) / (PAIR_MAX // 2)


def pair_safe_scales(rows: Float64Array) -> Float64Array:
    """Choose each row's int8 scale: (nearly) the smallest at which no pair of neighbours overflows 16 bits.

    Args:
        rows: float64 of shape (n_channels, n_inputs), in the order in which they are multiplied.

    Returns:
        float64 of shape (n_channels,). With q = rint(row / scale), |q| <= 127; and if columns 2i and 2i + 1 have the
        same sign, |q + q'| <= 128.
    """
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = even.reshape(len(rows), -1, 2)  # (n_channels, n_pairs, 2)
    scales = np.maximum(_largest(rows) / INT8_MAX, _largest(_pair_sums(pairs)) / PAIR_MAX)
    # If both values of a pair are rounded up, they can exceed the limit by 1: then the scale grows in steps of 0.1 %.
    while True:
        quantized = np.rint(pairs / scales[:, None, None])
        too_much = _largest(_pair_sums(quantized)) > PAIR_MAX
        if not too_much.any():
            return scales
        scales[too_much] *= 1.001


def _pair_sums(pairs: Float64Array) -> Float64Array:
    """Return each pair's sum, (n_channels, n_pairs); 0 if the signs differ: then one alone is the worst case."""
    first, second = pairs[..., 0], pairs[..., 1]
    sums: Float64Array = np.where(first * second > 0, first + second, 0.0)
    return sums


def _largest(rows: Float64Array) -> Float64Array:
    """Return the largest magnitude of each row; never 0, since callers divide by it."""
    largest: Float64Array = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny)
    return largest
