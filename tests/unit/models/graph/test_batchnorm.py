"""Batch normalisation is one multiplication and one addition: at a model's start ours, elsewhere an int8 convolution."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.catalog import load_spec
from models.graph.batchnorm import convolve_normalizations, take_first_normalization
from models.graph.int8 import quantize_int8
from models.graph.join import join_graph
from models.spec import Channels

N_CHANNELS = 16
# Some thousand times as large in one channel as in another, none at all in a third.
GAMMAS = np.concatenate([[0.0], np.geomspace(0.01, 30, N_CHANNELS - 1)]).astype(np.float32)


def normalisation(name: str, gamma: np.ndarray, *, seed: int = 0) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    n = len(gamma)
    values = (gamma, rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n))
    kinds = ("gamma", "beta", "mean", "variance")
    return [
        numpy_helper.from_array(np.asarray(value, np.float32), f"{name}_{kind}")
        for kind, value in zip(kinds, values, strict=True)
    ]


def batch_norm(name: str, source: str, target: str, **attributes: float) -> onnx.NodeProto:
    weights = [f"{name}_{kind}" for kind in ("gamma", "beta", "mean", "variance")]
    return helper.make_node("BatchNormalization", [source, *weights], [target], name, **attributes)


def classifier() -> onnx.ModelProto:
    """ResNet v2 in small: normalises its input, and again before an activation, where no convolution is before it."""
    rng = np.random.default_rng(1)
    weights = {
        "kernel": rng.normal(size=(N_CHANNELS, 3, 3, 3)) / 5,
        "second": rng.normal(size=(N_CHANNELS, N_CHANNELS, 1, 1)) / 4,
        "last": rng.normal(size=(1000, N_CHANNELS)) / 4,
        "bias": np.zeros(1000),
    }
    return helper.make_model(
        helper.make_graph(
            [
                batch_norm("first", "data", "normalised", epsilon=1e-3),
                helper.make_node("Conv", ["normalised", "kernel"], ["values"], "conv", strides=[8, 8]),
                helper.make_node("Relu", ["values"], ["positive"], "relu"),
                helper.make_node("Add", ["values", "positive"], ["sum"], "add"),
                batch_norm("inner", "sum", "inner_values"),
                helper.make_node("Relu", ["inner_values"], ["active"], "relu2"),
                helper.make_node("Conv", ["active", "second"], ["more"], "conv2"),
                helper.make_node("GlobalAveragePool", ["more"], ["pooled"], "pool"),
                helper.make_node("Flatten", ["pooled"], ["features"], "flat"),
                helper.make_node("Gemm", ["features", "last", "bias"], ["logits"], "gemm", transB=1),
            ],
            "tiny",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 224, 224])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])],
            [
                *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()),
                *normalisation("first", np.array([1.0, 0.8, 1.3])),
                *normalisation("inner", GAMMAS, seed=2),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def spec_of(channels: Channels = Channels.RGB):
    """Take ResNet18-v2's preprocessing, for a model whose tensors have other names."""
    spec = load_spec("resnet18-v2")
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update={"name": "data", "channels": channels}),
            "output": spec.output.model_copy(update={"name": "logits"}),
            "embedding": None,
        }
    )


def run(model: bytes, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(outputs, feed)


def pixels(n_images: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n_images, 224, 224, 3), np.uint8)


def as_input(images: np.ndarray, channels: Channels = Channels.RGB) -> np.ndarray:
    preprocessing = spec_of().preprocessing
    values = (images * preprocessing.scale - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.std)
    values = values if channels is Channels.RGB else values[..., ::-1]
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


@pytest.mark.parametrize("channels", list(Channels))
def test_the_first_normalisation_and_ours_are_one(channels):
    model = classifier().SerializeToString()
    images = pixels(2)

    joined = join_graph(spec_of(channels), model)

    names = [node.name for node in onnx.load_model_from_string(joined).graph.node]
    assert "model/first" not in names
    assert "model/inner" in names
    (logits,) = run(model, ["logits"], {"data": as_input(images, channels)})
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    (probabilities,) = run(joined, ["probabilities"], {"images": images})
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-7)


def first_of(**changes: object) -> onnx.GraphProto:
    graph = classifier().graph
    if changes.get("another_reader"):
        graph.node.append(helper.make_node("Relu", ["data"], ["other"]))
    if changes.get("trains"):
        graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    if changes.get("statistics_come_later"):
        del graph.initializer[[one.name for one in graph.initializer].index("first_mean")]
    if changes.get("of_some_domain"):
        graph.node[0].domain = "com.example"
    if changes.get("another_operator"):
        graph.node.insert(0, helper.make_node("Identity", ["data"], ["same"]))
        graph.node[1].input[0] = "same"
    return graph


@pytest.mark.parametrize(
    "change", ["another_reader", "trains", "statistics_come_later", "of_some_domain", "another_operator"]
)
def test_others_stay(change):
    graph = first_of(**{change: True})
    before = graph.SerializeToString()
    factor, offset = np.full(3, 2.0), np.full(3, -1.0)

    name, *values = take_first_normalization(graph, "data", factor, offset)

    assert name == "data"
    assert values[0] is factor
    assert values[1] is offset
    assert graph.SerializeToString() == before


def test_a_normalisation_before_an_activation_is_an_int8_convolution():
    model = onnx.shape_inference.infer_shapes(classifier())
    images = as_input(pixels(2))
    before = run(model.SerializeToString(), ["logits"], {"data": images})[0]

    assert convolve_normalizations(model) == ["first"]

    assert [node.op_type for node in model.graph.node if node.name in {"first", "inner"}] == [
        "BatchNormalization",
        "Conv",
    ]
    onnx.checker.check_model(model, full_check=True)
    after = run(model.SerializeToString(), ["logits"], {"data": images})[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_int8_keeps_channels_of_every_size():
    model = classifier()
    images = as_input(pixels(8))

    int8 = quantize_int8(model, [images])

    assert [node.op_type for node in int8.graph.node].count("BatchNormalization") == 1
    logits, exact = (run(each.SerializeToString(), ["logits"], {"data": images})[0] for each in (int8, model))
    assert np.abs(logits - exact).max() < 0.03 * np.abs(exact).max()
    tensors = {one.name: numpy_helper.to_array(one) for one in int8.graph.initializer}
    weights = tensors["inner_values_weight_quantized"][:, 0, 0, 0] * tensors["inner_values_weight_scale"]
    variance = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "inner_variance")
    np.testing.assert_allclose(weights, GAMMAS / np.sqrt(variance + 1e-5), rtol=1e-3)
