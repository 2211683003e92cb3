from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from cluster.cli import build_app
from models.catalog import load_spec
from models.errors import ConfigError, QuantizationError, SourceError
from models.inference.classifier import Classifier, Device, choose
from models.inference.model_input import to_model_input
from models.labels import load_classes
from models.spec import Precision
from tests.support.tiny_model import SIDE, colour_shards


def build(path, *, opset=17, outlier=1.0):
    """Score the mean of each colour, by way of a convolution; one weight may be so large that 8 bits see nothing else."""
    kernel = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    wide = np.concatenate([kernel, np.full((1, 3, 1, 1), outlier, np.float32)])
    last = np.concatenate([np.eye(3, dtype=np.float32) * 20, np.zeros((3, 1), np.float32)], axis=1)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["values"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["values"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "last", "bias"], ["scores"], transB=1),
    ]
    weights = {"kernel": wide, "last": last, "bias": np.zeros(3, np.float32)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Return a function that registers a model as `mine`, in a cache of its own, and gives a source of 60 images."""
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))

    def register(**more):
        path = build(tmp_path / "m.onnx", **more)
        (tmp_path / "l.txt").write_text("red\ngreen\nblue\n")
        options = ["--name", "mine", "--labels", str(tmp_path / "l.txt"), "--preprocess", "unit"]
        assert CliRunner().invoke(build_app(), ["models", "add", str(path), *options]).exit_code == 0
        colour_shards(tmp_path / "s", shards=2, samples=30)
        return str(tmp_path / "s")

    return register


def quantize(source, *more):
    return CliRunner().invoke(build_app(), ["models", "quantize", "mine", "--calibration", source, *more])


@pytest.mark.parametrize("opset", [11, 17])
def test_what_holds_the_bar_is_registered_and_found_by_its_precision(model, opset):
    source = model(opset=opset)

    done = quantize(source)

    assert done.exit_code == 0, done.output
    assert "30 images set the ranges, the other 30 are held out" in done.stdout
    assert "registered int8" in done.stdout
    assert "fp16             top-1 100.00 %" in done.stdout
    spec = load_spec("mine")
    assert set(spec.artifacts) == {Precision.FP32, Precision.INT8}
    assert "top-1 100.00 %, fp32 100.00 %" in (spec.artifact(Precision.INT8).note or "")
    assert choose(spec, Device.CPU, "auto", has_gpu=False).precision is Precision.INT8
    colours = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3, SIDE, SIDE, 3)).copy()
    for precision in (*spec.artifacts, Precision.FP16):
        found = Classifier(spec, precision=precision, top_k=1).predict(images)
        assert found.label_ids[:, 0].tolist() == [0, 1, 2], precision
    evaluated = CliRunner().invoke(
        build_app(), ["evaluate", source, "--model", "mine", "--precision", "int8", "--json"]
    )
    assert json.loads(evaluated.stdout)["precision"] == "int8"


def test_a_model_that_loses_too_much_is_refused_and_nothing_is_registered(model):
    source = model(outlier=1e6)

    done = quantize(source, "--methods", "minmax")

    assert isinstance(done.exception, QuantizationError)
    assert done.exception.exit_code == 1
    assert "points of top-1 on 30 images" in str(done.exception)
    assert set(load_spec("mine").artifacts) == {Precision.FP32}


def test_a_bar_that_is_set_too_high_refuses_even_a_perfect_one(model):
    source = model()

    done = quantize(source, "--max-drop", "-1", "--methods", "minmax", "--no-fp16", "--json")

    assert isinstance(done.exception, QuantizationError)
    assert json.loads(done.stdout)["chosen"] == []
    assert set(load_spec("mine").artifacts) == {Precision.FP32}


def test_a_model_that_is_replaced_loses_what_was_made_of_the_old_one(model, tmp_path):
    source = model()
    assert quantize(source, "--methods", "minmax", "--no-fp16").exit_code == 0
    assert Precision.INT8 in load_spec("mine").artifacts
    path = build(tmp_path / "other.onnx", outlier=0.5)

    options = ["--name", "mine", "--labels", str(tmp_path / "l.txt"), "--preprocess", "unit", "--replace"]
    assert CliRunner().invoke(build_app(), ["models", "add", str(path), *options]).exit_code == 0

    assert set(load_spec("mine").artifacts) == {Precision.FP32}


def test_what_was_made_is_undone_by_remove(model):
    source = model()
    assert quantize(source, "--methods", "minmax", "--no-fp16").exit_code == 0

    assert CliRunner().invoke(build_app(), ["models", "remove", "mine"]).exit_code == 0

    with pytest.raises(ConfigError, match="model must be one of"):
        load_spec("mine")


def test_too_few_images_are_refused(model, tmp_path):
    model()
    colour_shards(tmp_path / "few", shards=1, samples=9)

    done = quantize(str(tmp_path / "few"))

    assert isinstance(done.exception, SourceError)
    assert "has 9 labelled images that can be decoded; at least 20" in str(done.exception)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "model must be one of"), ("m.onnx", "does not exist")],
)
def test_models_that_are_not_there_are_refused(model, name, message):
    source = model()

    done = CliRunner().invoke(build_app(), ["models", "quantize", name, "--calibration", source])

    assert message in str(done.exception)


def test_the_input_that_calibrates_is_the_one_that_the_joined_graph_makes(tiny_model):
    import onnxruntime as ort

    from models.graph.join import join_graph

    spec = load_spec(str(tiny_model))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    joined = Classifier(spec, precision=Precision.FP32, top_k=1, graph=join_graph(spec, tiny_model.read_bytes()))
    session = ort.InferenceSession(str(tiny_model), providers=["CPUExecutionProvider"])

    (own,) = session.run(None, {spec.input.name: to_model_input(pixels, spec)})

    expected = joined.predict(pixels, probabilities=True).probabilities
    exponentials = np.exp(own - own.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), expected, rtol=1e-5)
    assert len(load_classes(spec)) == own.shape[1]
