"""ResNet18-v2 like the ONNX Model Zoo's file (graph, tensor names, opset 7, size), with made-up weights.

For tests and benchmarks only: its labels mean nothing. The graph follows Gluon's `resnet18_v2`: pre-activation basic
blocks (He et al., "Identity Mappings in Deep Residual Networks", 2016), a batch norm on the input, and a last one
before the pooling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
PREFIX = "resnetv22"


class _Builder:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.convs = self.norms = self.relus = self.adds = 0

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def norm(self, x: str, scope: str, channels: int) -> str:
        name = f"{scope}_batchnorm{self.norms}"
        self.norms += 1
        ones, noise = np.ones(channels), self.random.normal(0, 0.05, (2, channels))
        names = [
            self.weight(f"{name}_gamma", ones + noise[0]),
            self.weight(f"{name}_beta", noise[1]),
            self.weight(f"{name}_running_mean", np.zeros(channels)),
            self.weight(f"{name}_running_var", ones),
        ]
        self.nodes.append(
            helper.make_node(
                "BatchNormalization", [x, *names], [f"{name}_fwd"], name=f"{name}_fwd", epsilon=1e-5, spatial=1
            )
        )
        return f"{name}_fwd"

    def relu(self, x: str, scope: str) -> str:
        name = f"{scope}_activation{self.relus}"
        self.relus += 1
        self.nodes.append(helper.make_node("Relu", [x], [name], name=name))
        return name

    def conv(self, x: str, scope: str, shape: tuple[int, int, int], stride: int, pad: int) -> str:
        outputs, inputs, kernel = shape
        name = f"{scope}_conv{self.convs}"
        self.convs += 1
        fan_in = inputs * kernel * kernel
        values = self.random.normal(0, np.sqrt(1.0 / fan_in), (outputs, inputs, kernel, kernel))
        weight = self.weight(f"{name}_weight", values)
        self.nodes.append(
            helper.make_node(
                "Conv", [x, weight], [f"{name}_fwd"], name=f"{name}_fwd", dilations=[1, 1], group=1,
                kernel_shape=[kernel, kernel], pads=[pad] * 4, strides=[stride] * 2,
            )
        )  # fmt: skip
        return f"{name}_fwd"

    def block(self, x: str, scope: str, channels: int, before: int, stride: int) -> str:
        activated = self.relu(self.norm(x, scope, before), scope)
        shortcut = x
        if stride != 1 or before != channels:
            shortcut = self.conv(activated, scope, (channels, before, 1), stride, 0)
        y = self.conv(activated, scope, (channels, before, 3), stride, 1)
        y = self.conv(self.relu(self.norm(y, scope, channels), scope), scope, (channels, channels, 3), 1, 1)
        name = f"{scope}__plus{self.adds}"
        self.adds += 1
        self.nodes.append(helper.make_node("Add", [y, shortcut], [name], name=name))
        return name

    def restart(self) -> None:
        self.convs = self.norms = self.relus = self.adds = 0


def build_made_up_resnet(path: Path, *, seed: int = 18, num_classes: int = 1000) -> Path:
    """Write the model file; about 46.8 MB, one second."""
    b = _Builder(seed)
    x = b.norm("data", PREFIX, 3)
    x = b.conv(x, PREFIX, (64, 3, 7), 2, 3)
    x = b.relu(b.norm(x, PREFIX, 64), PREFIX)
    b.nodes.append(
        helper.make_node(
            "MaxPool", [x], [f"{PREFIX}_pool0_fwd"], name=f"{PREFIX}_pool0_fwd",
            kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2],
        )
    )  # fmt: skip
    x, before = f"{PREFIX}_pool0_fwd", 64
    saved = (b.norms, b.convs, b.relus)
    for stage, (channels, stride) in enumerate(STAGES, start=1):
        b.restart()
        for index in range(2):
            x = b.block(x, f"{PREFIX}_stage{stage}", channels, before, stride if index == 0 else 1)
            before = channels
    b.norms, b.convs, b.relus = saved
    x = b.relu(b.norm(x, PREFIX, before), PREFIX)
    b.nodes.append(helper.make_node("GlobalAveragePool", [x], [f"{PREFIX}_pool1_fwd"], name=f"{PREFIX}_pool1_fwd"))
    b.nodes.append(helper.make_node("Flatten", [f"{PREFIX}_pool1_fwd"], ["flatten_473"], name="flatten_473"))
    weight = b.weight(f"{PREFIX}_dense0_weight", b.random.normal(0, 0.1, (num_classes, before)))
    bias = b.weight(f"{PREFIX}_dense0_bias", b.random.normal(0, 0.5, num_classes))
    b.nodes.append(
        helper.make_node(
            "Gemm", ["flatten_473", weight, bias], [f"{PREFIX}_dense0_fwd"], name=f"{PREFIX}_dense0_fwd",
            alpha=1.0, beta=1.0, transA=0, transB=1,
        )
    )  # fmt: skip
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 224, 224])
    # IR version 3 lists every weight among the inputs too, as the zoo's file does.
    inputs = [image, *(helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in b.weights)]
    output = helper.make_tensor_value_info(f"{PREFIX}_dense0_fwd", TensorProto.FLOAT, ["N", num_classes])
    graph = helper.make_graph(b.nodes, "mxnet_converted_model", inputs, [output], b.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)
    path.write_bytes(model.SerializeToString())
    return path
