from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.catalog import load_spec
from models.errors import SignatureError
from models.graph.fp16 import TOLERANCE, check_half, load_graph, to_half
from models.graph.join import join_graph
from models.inference.classifier import Classifier
from models.spec import Precision
from tests.support.made_up_resnet import build_made_up_resnet
from tests.support.tiny_model import SIDE


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = build_made_up_resnet(tmp_path_factory.mktemp("resnet") / "resnet18-v2-7.onnx")
    spec = load_spec("resnet18-v2")
    return spec, join_graph(spec, path.read_bytes())


def test_the_weights_are_half_as_large_and_the_probabilities_near(resnet):
    spec, whole = resnet
    images = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)

    half = to_half(whole)

    assert len(half) < 0.51 * len(whole)
    expected, found = (
        Classifier(spec, precision=Precision.FP32, graph=graph).predict(images, probabilities=True)
        for graph in (whole, half)
    )
    assert 0 < np.abs(found.probabilities - expected.probabilities).max() < TOLERANCE
    assert found.probabilities.dtype == np.float32
    # Not rounded to float16 on the way out: its scores would tie.
    assert (found.probabilities != found.probabilities.astype(np.float16)).mean() > 0.9


def test_preprocessing_softmax_and_top_k_stay_float32(resnet):
    _, whole = resnet

    half = onnx.load_model_from_string(to_half(whole))

    ours = {t.name: t.data_type for t in half.graph.initializer if t.name.startswith("shardlabel_")}
    assert ours
    assert set(ours.values()) == {TensorProto.FLOAT}
    weights = [t for t in half.graph.initializer if t.name.startswith("model/") and len(t.dims) == 4]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}


def test_float16_is_made_once_checked_and_kept(tiny_model):
    spec = load_spec(str(tiny_model))

    first = load_graph(spec, Precision.FP16, tiny_model)

    assert load_graph(spec, Precision.FP16, tiny_model.with_name("not-needed-now.onnx")) == first
    black = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    assert Classifier(spec, precision=Precision.FP16, top_k=3).predict(black).label_ids.tolist() == [[0, 1, 2]]


def test_a_model_whose_sums_leave_float16_is_refused(tiny_model):
    spec = load_spec(str(tiny_model))
    model = onnx.load(tiny_model)
    # 200,000 does not fit; the model takes it away again.
    model.graph.node[2].input[0] = "lowered"
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(400), name) for name in ("big", "also_big")])
    model.graph.node.insert(2, helper.make_node("Div", ["raised", "also_big"], ["lowered"]))
    model.graph.node.insert(2, helper.make_node("Mul", ["more", "big"], ["raised"]))
    model.graph.node.insert(2, helper.make_node("Mul", ["means", "big"], ["more"]))
    whole = join_graph(spec, model.SerializeToString())

    with pytest.raises(SignatureError, match=r"has inner values up to \d+, .*; use --precision fp32"):
        check_half(spec, whole, to_half(whole))
