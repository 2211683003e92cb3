"""Join a model with its preprocessing and its top-k into one graph: uint8 pixels in, labels out.

This way processes exchange 150 kB an image instead of 600, and CPU, GPU, bulk and online run the same arithmetic. The
joined graph takes

    images         uint8 of shape (n_images, crop, crop, 3), HWC RGB; n_images is fixed if the entry says so
    k              int64 of shape (1,): the number of labels; optional, DEFAULT_TOP_K if it is not fed

and returns

    probabilities  float32 of shape (n_images, n_classes)
    top_scores     float32 of shape (n_images, k), best first
    top_ids        int64 of shape (n_images, k); equal scores keep the lower class index first
    embedding      float32 of shape (n_images, features), if the entry names that tensor
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from models.errors import ArtifactError, SignatureError
from models.graph.batchnorm import take_first_normalization
from models.graph.quantized_input import take_needless_quantisers
from models.sandbox.untrusted_onnx import opset_of
from models.spec import Channels, InputType, Layout, ModelSpec, OutputKind

DEFAULT_TOP_K = 1
# From opset 11 on our own nodes mean the same: TopK puts the lower index first, and Softmax over the last of two axes
# equals that of opset 13. Only older models are converted, since the converter knows no operators of ONNX Runtime.
MIN_OPSET = 11
TARGET_OPSET = 17
_PREFIX = "shardlabel_"
# Prefix of all names in the model itself.
_MODEL = "model/"


def join_graph(spec: ModelSpec, model_bytes: bytes) -> bytes:
    """Build the joined graph from a model file's bytes; takes a second for 47 MB.

    Raises:
        ArtifactError: The bytes are not an ONNX model.
        SignatureError: The model lacks the entry's tensors, has a second input, or cannot be converted.
    """
    try:
        model = onnx.load_model_from_string(model_bytes)
    except Exception as err:
        raise ArtifactError(f"{spec.name}: the file is not an ONNX model: {err}") from err
    _check_tensors(spec, model)
    # A model may use the names of our own tensors (EfficientNet-Lite0 has an input `images`).
    model = compose.add_prefix(_upgraded(model), _MODEL)
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    # Weights are dropped from the inputs: a caller could feed them, so ONNX Runtime would not fold them.
    inputs = [i for i in graph.input if i.name not in initializers and i.name != _MODEL + spec.input.name]
    if inputs:
        second = inputs[0].name.removeprefix(_MODEL)
        raise SignatureError(f"{spec.name}: expected one input, {spec.input.name!r}, also got {second!r}")
    before, before_weights = _preprocessing_nodes(spec, graph)
    kinds = {output.name: output.type.tensor_type.elem_type for output in graph.output}
    after, after_weights = _label_nodes(spec, cast=kinds[_MODEL + spec.output.name] != TensorProto.FLOAT)
    nodes = [*before, *graph.node, *after]
    side = spec.preprocessing.crop
    rows = spec.input.batch or "n_images"
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, "n_classes"]),
        helper.make_tensor_value_info("top_scores", TensorProto.FLOAT, [rows, "top_k"]),
        helper.make_tensor_value_info("top_ids", TensorProto.INT64, [rows, "top_k"]),
    ]
    if spec.embedding is not None:
        outputs.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [rows, "features"]))
    joined = helper.make_graph(
        nodes,
        f"{spec.name}_joined",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, [rows, side, side, 3]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        outputs,
        [*graph.initializer, *before_weights, *after_weights],
    )
    result = helper.make_model(joined, opset_imports=list(model.opset_import), ir_version=max(model.ir_version, 8))
    result.functions.extend(model.functions)
    return bytes(result.SerializeToString())


def _check_tensors(spec: ModelSpec, model: onnx.ModelProto) -> None:
    inputs = [i.name for i in model.graph.input]
    outputs = [o.name for o in model.graph.output]
    if spec.input.name not in inputs:
        weights = {tensor.name for tensor in model.graph.initializer}
        have = ", ".join(name for name in inputs if name not in weights)
        raise SignatureError(f"{spec.name}: expected an input {spec.input.name!r}, the file has {have}")
    if spec.output.name not in outputs:
        raise SignatureError(f"{spec.name}: expected an output {spec.output.name!r}, the file has {', '.join(outputs)}")
    produced = {name for node in model.graph.node for name in node.output}
    if spec.embedding is not None and spec.embedding not in produced:
        raise SignatureError(f"{spec.name}: no node of the file outputs the embedding tensor {spec.embedding!r}")


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= MIN_OPSET:
        return model
    try:
        return version_converter.convert_version(model, TARGET_OPSET)
    except Exception as err:
        raise SignatureError(f"the model has opset {opset} and cannot be converted to {TARGET_OPSET}: {err}") from err


def _preprocessing_nodes(
    spec: ModelSpec, graph: onnx.GraphProto
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """uint8 NHWC RGB -> the model's own input: (value * scale - mean) / std, as one multiply and one add.

    A batch normalisation at the start of the model is merged into them. If the model only quantises its input back to
    the pixels, both steps are dropped.
    """
    p, wanted = spec.preprocessing, spec.input
    nodes, weights = [], []
    pixels, target = "images", _MODEL + wanted.name
    if wanted.channels is Channels.BGR:
        weights.append(numpy_helper.from_array(np.asarray([2, 1, 0], np.int64), f"{_PREFIX}bgr_order"))
        nodes.append(helper.make_node("Gather", [pixels, f"{_PREFIX}bgr_order"], [f"{_PREFIX}bgr"], axis=3))
        pixels = f"{_PREFIX}bgr"
    if wanted.layout is Layout.NCHW:
        # Transposed as uint8: a quarter of the bytes to move.
        nodes.append(helper.make_node("Transpose", [pixels], [f"{_PREFIX}nchw"], perm=[0, 3, 1, 2]))
        pixels = f"{_PREFIX}nchw"
    if wanted.dtype is InputType.UINT8:
        return [*nodes, helper.make_node("Identity", [pixels], [target])], weights
    std, mean = np.asarray(p.std, np.float64), np.asarray(p.mean, np.float64)
    scales, shifts = (
        values if wanted.channels is Channels.RGB else values[::-1] for values in (p.scale / std, -mean / std)
    )
    if wanted.layout is Layout.NCHW and wanted.dtype is InputType.FLOAT32:
        target, scales, shifts = take_first_normalization(graph, target, scales, shifts)
    factor, offset = scales.astype(np.float32), shifts.astype(np.float32)
    if quantised := take_needless_quantisers(graph, target, factor, offset):
        return [*nodes, *(helper.make_node("Identity", [pixels], [name]) for name in quantised)], weights
    for name, values in (("factor", factor), ("offset", offset)):
        # One value per column too: ONNX Runtime may turn NCHW into NHWC, where broadcasting runs of only three values
        # takes ten times as long.
        row = np.broadcast_to(values[:, np.newaxis], (3, p.crop))
        constant = row[np.newaxis, :, np.newaxis] if wanted.layout is Layout.NCHW else row.T[np.newaxis, np.newaxis]
        weights.append(numpy_helper.from_array(np.ascontiguousarray(constant), f"{_PREFIX}{name}"))
    normalised = target if wanted.dtype is InputType.FLOAT32 else f"{_PREFIX}normalised"
    nodes += [
        helper.make_node("Cast", [pixels], [f"{_PREFIX}float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{_PREFIX}float", f"{_PREFIX}factor"], [f"{_PREFIX}scaled"]),
        helper.make_node("Add", [f"{_PREFIX}scaled", f"{_PREFIX}offset"], [normalised]),
    ]
    if normalised != target:
        nodes.append(helper.make_node("Cast", [normalised], [target], to=TensorProto.FLOAT16))
    return nodes, weights


def _label_nodes(spec: ModelSpec, *, cast: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The model's own output -> probabilities and top-k."""
    flat = f"{_PREFIX}flat"
    output = _MODEL + spec.output.name
    nodes = []
    if cast:
        # float16 has 11 bits, so that scores would tie.
        nodes.append(helper.make_node("Cast", [output], [f"{_PREFIX}output"], to=TensorProto.FLOAT))
        output = f"{_PREFIX}output"
    nodes.append(helper.make_node("Flatten", [output], [flat], axis=1))
    if spec.output.kind is OutputKind.LOGITS:
        nodes.append(helper.make_node("Softmax", [flat], ["probabilities"], axis=1))
    else:
        nodes.append(helper.make_node("Identity", [flat], ["probabilities"]))
    # ONNX's TopK keeps the lower index first among equal values.
    nodes.append(
        helper.make_node("TopK", ["probabilities", "k"], ["top_scores", "top_ids"], axis=1, largest=1, sorted=1)
    )
    if spec.embedding is not None:
        # The features may have another type; a cast of float32 to itself costs nothing.
        features = f"{_PREFIX}features"
        nodes.append(helper.make_node("Cast", [_MODEL + spec.embedding], [features], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Flatten", [features], ["embedding"], axis=1))
    return nodes, [numpy_helper.from_array(np.asarray([DEFAULT_TOP_K], np.int64), "k")]
