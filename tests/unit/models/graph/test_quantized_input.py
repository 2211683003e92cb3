"""A quantised model whose first step undoes the normalisation gets the pixels as they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.catalog import load_spec
from models.graph import join
from models.graph.quantized_input import take_needless_quantisers
from models.spec import Precision
from models.store.locate import locate

NORMALISATION = ("Cast", "Mul", "Add", "QuantizeLinear")


def quantised_model(
    scale: float, zero_point: np.generic, *, reads_twice: bool = False, branches: bool = False
) -> onnx.GraphProto:
    """Quantise `data` and turn it back."""
    nodes = [
        helper.make_node("QuantizeLinear", ["data", "scale", "zero"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], ["out"]),
    ]
    if reads_twice:
        nodes.append(helper.make_node("Relu", ["data"], ["other"]))
    if branches:
        result = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
        branch = helper.make_graph([helper.make_node("Relu", ["data"], ["chosen"])], "branch", [], [result])
        nodes.append(helper.make_node("If", ["which"], ["other"], then_branch=branch, else_branch=branch))
    return helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [numpy_helper.from_array(np.float32(scale), "scale"), numpy_helper.from_array(np.asarray(zero_point), "zero")],
    )


def take(model: onnx.GraphProto, factor: tuple[float, float, float] = (1 / 128,) * 3) -> list[str]:
    offset = np.full(3, -127 / 128, np.float32)
    return take_needless_quantisers(model, "data", np.asarray(factor, np.float32), offset)


def test_a_quantiser_that_gives_the_pixels_back_is_taken_out():
    model = quantised_model(1 / 128, np.uint8(127))
    assert take(model) == ["quantised"]
    assert [node.op_type for node in model.node] == ["DequantizeLinear"]


@pytest.mark.parametrize(
    ("model", "factor"),
    [
        (quantised_model(1 / 127, np.uint8(127)), (1 / 128,) * 3),
        (quantised_model(1 / 128, np.uint8(128)), (1 / 128,) * 3),
        (quantised_model(1 / 128, np.int8(127)), (1 / 128,) * 3),
        (quantised_model(1 / 128, np.uint8(127)), (1 / 128, 1 / 128, 1 / 127)),
        (quantised_model(1 / 128, np.uint8(127), reads_twice=True), (1 / 128,) * 3),
        (quantised_model(1 / 128, np.uint8(127), branches=True), (1 / 128,) * 3),
    ],
    ids=["other scale", "other zero point", "signed", "one channel differs", "somebody else reads it", "a branch does"],
)
def test_others_stay(model, factor):
    before = model.SerializeToString()
    assert take(model, factor) == []
    assert model.SerializeToString() == before


def test_the_bundled_models_labels_keep_their_bits(monkeypatch):
    spec = load_spec("efficientnet-lite0")
    model = locate(spec, Precision.INT8).read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    images[0, :16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)

    spared = join.join_graph(spec, model)
    monkeypatch.setattr(join, "take_needless_quantisers", lambda *_: [])
    whole = join.join_graph(spec, model)

    assert first_operators(spared) == ["Transpose"]
    assert first_operators(whole) == ["Transpose", *NORMALISATION]
    for one, other in zip(run(spared, images), run(whole, images), strict=True):
        assert np.array_equal(one, other)


def first_operators(joined: bytes) -> list[str]:
    """Return what is done to the images before they are dequantised, copies aside."""
    nodes = onnx.load_model_from_string(joined).graph.node
    found, name = [], "images"
    while True:
        (node,) = (node for node in nodes if name in node.input)
        if node.op_type == "DequantizeLinear":
            return found
        if node.op_type != "Identity":
            found.append(node.op_type)
        name = node.output[0]


def run(joined: bytes, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(joined, options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "top_ids", "top_scores"], {"images": images})
