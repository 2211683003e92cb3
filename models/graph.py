"""Join a model with its preprocessing and its top-k into one graph: uint8 pixels in, labels out.

So little travels between processes (150 kB an image instead of 600), and CPU, GPU, bulk and online run the same
arithmetic. The joined graph takes

    images         uint8 of shape (n_images, crop, crop, 3), HWC RGB
    k              int64 of shape (1,): how many labels; optional, DEFAULT_TOP_K where it is not fed

and gives

    probabilities  float32 of shape (n_images, n_classes)
    top_scores     float32 of shape (n_images, k), best first
    top_ids        int64 of shape (n_images, k); equal scores keep the lower class index first
    embedding      float32 of shape (n_images, features), where the entry names that tensor
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from models.errors import ArtifactError, SignatureError
from models.spec import Layout, ModelSpec, OutputKind

DEFAULT_TOP_K = 1
# 13 is the first opset with per-channel QuantizeLinear, which int8 needs, and with Softmax over one axis.
MIN_OPSET = 13
TARGET_OPSET = 17
_PREFIX = "shardlabel_"
# Before every name of the model's own.
_MODEL = "model/"


def join_graph(spec: ModelSpec, model_bytes: bytes) -> bytes:
    """Build the joined graph of a model file's bytes; takes a second for 47 MB."""
    try:
        model = onnx.load_model_from_string(model_bytes)
    except Exception as err:
        raise ArtifactError(f"{spec.name}: the file is not an ONNX model: {err}") from err
    _check_tensors(spec, model)
    # A model may use our own tensors' names (EfficientNet-Lite0 has an input `images`).
    model = compose.add_prefix(_upgraded(model), _MODEL)
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    # Weights that are also inputs could be fed by a caller, so ONNX Runtime would not fold them.
    inputs = [i for i in graph.input if i.name not in initializers and i.name != _MODEL + spec.input.name]
    if inputs:
        second = inputs[0].name.removeprefix(_MODEL)
        raise SignatureError(f"{spec.name}: expected one input, {spec.input.name!r}, also got {second!r}")
    before, before_weights = _preprocessing_nodes(spec)
    after, after_weights = _label_nodes(spec)
    nodes = [*before, *graph.node, *after]
    side = spec.preprocessing.crop
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n_images", "n_classes"]),
        helper.make_tensor_value_info("top_scores", TensorProto.FLOAT, ["n_images", "top_k"]),
        helper.make_tensor_value_info("top_ids", TensorProto.INT64, ["n_images", "top_k"]),
    ]
    if spec.embedding is not None:
        outputs.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n_images", "features"]))
    joined = helper.make_graph(
        nodes,
        f"{spec.name}_joined",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["n_images", side, side, 3]),
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
        raise SignatureError(f"{spec.name}: no node of the file gives the embedding tensor {spec.embedding!r}")


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset >= MIN_OPSET:
        return model
    return version_converter.convert_version(model, TARGET_OPSET)


def _preprocessing_nodes(spec: ModelSpec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """uint8 NHWC -> the model's own input: (value * scale - mean) / std, as one multiply and one add."""
    p = spec.preprocessing
    std, mean = np.asarray(p.std, np.float64), np.asarray(p.mean, np.float64)
    shape = (1, 3, 1, 1) if spec.input.layout is Layout.NCHW else (1, 1, 1, 3)
    factor = numpy_helper.from_array((p.scale / std).reshape(shape).astype(np.float32), f"{_PREFIX}factor")
    offset = numpy_helper.from_array((-mean / std).reshape(shape).astype(np.float32), f"{_PREFIX}offset")
    nodes = []
    pixels = "images"
    if spec.input.layout is Layout.NCHW:
        # Transposed while it is uint8: a quarter of the bytes to move.
        nodes.append(helper.make_node("Transpose", [pixels], [f"{_PREFIX}nchw"], perm=[0, 3, 1, 2]))
        pixels = f"{_PREFIX}nchw"
    nodes += [
        helper.make_node("Cast", [pixels], [f"{_PREFIX}float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{_PREFIX}float", f"{_PREFIX}factor"], [f"{_PREFIX}scaled"]),
        helper.make_node("Add", [f"{_PREFIX}scaled", f"{_PREFIX}offset"], [_MODEL + spec.input.name]),
    ]
    return nodes, [factor, offset]


def _label_nodes(spec: ModelSpec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The model's own output -> probabilities and top-k."""
    flat = f"{_PREFIX}flat"
    nodes = [helper.make_node("Flatten", [_MODEL + spec.output.name], [flat], axis=1)]
    if spec.output.kind is OutputKind.LOGITS:
        nodes.append(helper.make_node("Softmax", [flat], ["probabilities"], axis=1))
    else:
        nodes.append(helper.make_node("Identity", [flat], ["probabilities"]))
    # ONNX's TopK keeps the lower index first among equal values.
    nodes.append(
        helper.make_node("TopK", ["probabilities", "k"], ["top_scores", "top_ids"], axis=1, largest=1, sorted=1)
    )
    if spec.embedding is not None:
        nodes.append(helper.make_node("Flatten", [_MODEL + spec.embedding], ["embedding"], axis=1))
    return nodes, [numpy_helper.from_array(np.asarray([DEFAULT_TOP_K], np.int64), "k")]
