from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from cluster.cli import build_app
from models.catalog import load_labels, load_spec, model_names
from models.errors import ConfigError
from models.inference.classifier import Classifier
from models.inference.model_input import to_model_input
from models.inference.tensor_model import TensorModel
from models.register.register import read_labels
from models.spec import Precision
from tests.support.tiny_model import SIDE

HALF = TensorProto.FLOAT16
COLOURS = np.array([[(250, 10, 10)], [(10, 250, 10)], [(10, 10, 250)]], np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def build(path, *, layout="NCHW", batch="n", kind=TensorProto.FLOAT, tail="logits", hard_batch=False, bgr=False):
    """A model that scores the mean of each channel: red, green, blue."""
    axes, dims = ([2, 3], [batch, 3, SIDE, SIDE]) if layout == "NCHW" else ([1, 2], [batch, SIDE, SIDE, 3])
    real = HALF if kind == HALF else TensorProto.FLOAT
    weights = [numpy_helper.from_array(np.array([-1, 3] if not hard_batch else [1, 3], np.int64), "shape")]
    factor = np.array(10 / 255 if kind == TensorProto.UINT8 else 10, np.float16 if real == HALF else np.float32)
    weights.append(numpy_helper.from_array(factor, "ten"))
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=real)] if kind == TensorProto.UINT8 else []
    nodes += [
        helper.make_node("ReduceMean", ["f" if nodes else "x"], ["means"], axes=axes, keepdims=0),
        helper.make_node("Reshape", ["means", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "ten"], ["scores"]),
    ]
    if bgr:
        weights.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "turn"))
        nodes += [helper.make_node("Gather", ["scores", "turn"], ["turned"], axis=1)]
    last = "turned" if bgr else "scores"
    if tail != "logits":
        nodes.append(helper.make_node(tail, [last], ["out"]))
        last = "out"
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info(last, real, [batch, 3])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "three.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def add(*arguments):
    return CliRunner().invoke(build_app(), ["models", "add", *map(str, arguments)])


@pytest.mark.parametrize(
    ("shape", "preprocess", "facts"),
    [
        pytest.param({}, "unit", ("float32", "NCHW", None, "logits", "fp32"), id="nchw"),
        pytest.param({"layout": "NHWC"}, "unit", ("float32", "NHWC", None, "logits", "fp32"), id="nhwc"),
        pytest.param({"batch": 1}, "unit", ("float32", "NCHW", None, "logits", "fp32"), id="fixed-in-name-only"),
        pytest.param({"batch": 1, "hard_batch": True}, "unit", ("float32", "NCHW", 1, "logits", "fp32"), id="fixed"),
        pytest.param({"kind": TensorProto.UINT8}, "none", ("uint8", "NCHW", None, "logits", "fp32"), id="uint8"),
        pytest.param({"kind": HALF}, "unit", ("float16", "NCHW", None, "logits", "fp16"), id="float16"),
        pytest.param({"tail": "Softmax"}, "unit", ("float32", "NCHW", None, "probabilities", "fp32"), id="softmax"),
        pytest.param({"bgr": True}, "keras-caffe", ("float32", "NCHW", None, "logits", "fp32"), id="bgr"),
    ],
)
def test_what_a_file_is_is_found_out_and_its_labels_are_right(home, tmp_path, labels, shape, preprocess, facts):
    path = build(tmp_path / "m.onnx", **shape)

    done = add(path, "--name", "mine", "--labels", labels, "--preprocess", preprocess)

    assert done.exit_code == 0, done.output
    spec = load_spec("mine")
    (precision,) = spec.artifacts
    assert (spec.input.dtype, spec.input.layout, spec.input.batch, spec.output.kind, precision) == facts
    classifier = Classifier(spec, precision=precision, top_k=3)
    images = np.broadcast_to(COLOURS[:, None], (3, SIDE, SIDE, 3)).copy()
    found = classifier.predict(images, probabilities=True)
    assert found.label_ids[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-3)
    assert classifier.predict(images[:0]).label_ids.shape == (0, 3)
    own = TensorModel(spec, precision=precision).run(to_model_input(images, spec).astype(np.float32))
    assert own.argmax(axis=1).tolist() == [0, 1, 2]
    assert own.dtype == np.float32


def test_a_fixed_batch_gives_what_a_free_one_gives(home, tmp_path, labels):
    images = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)
    found = []
    for name, batch in (("free", "n"), ("four", 4)):
        path = build(tmp_path / f"{name}.onnx", batch=batch)
        if batch == 4:
            model = onnx.load(path)
            model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([4, 3], np.int64), "shape"))
            onnx.save(model, path)
        assert add(path, "--name", name, "--labels", labels, "--preprocess", "unit").exit_code == 0
        classifier = Classifier(load_spec(name), precision=Precision.FP32, top_k=2)
        found.append(classifier.predict(images, probabilities=True))

    assert load_spec("four").input.batch == 4
    np.testing.assert_array_equal(found[0].label_ids, found[1].label_ids)
    np.testing.assert_allclose(found[0].probabilities, found[1].probabilities, rtol=1e-6)


def test_weights_beside_the_model_become_part_of_it(home, tmp_path, labels):
    path = build(tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0, convert_attribute=False)
    assert (tmp_path / "m.data").is_file()

    assert add(path, "--name", "mine", "--labels", labels, "--preprocess", "unit").exit_code == 0
    (tmp_path / "m.data").unlink()
    path.unlink()

    classifier = Classifier(load_spec("mine"), precision=Precision.FP32, top_k=1)
    assert classifier.predict(np.full((1, SIDE, SIDE, 3), (9, 250, 9), np.uint8)).label_ids.tolist() == [[1]]


def test_names_are_not_taken_twice_and_can_be_given_back(home, tmp_path, labels):
    path = build(tmp_path / "m.onnx")
    arguments = (path, "--labels", labels, "--preprocess", "unit", "--name")
    assert add(*arguments, "mine").exit_code == 0
    assert "the catalog has a model of that name" in str(add(*arguments, "resnet18-v2").exception)
    assert "this name is already registered" in str(add(*arguments, "mine").exception)
    assert "--name must be lower-case letters" in str(add(*arguments, "../mine").exception)
    assert add(*arguments, "mine", "--replace").exit_code == 0

    done = CliRunner().invoke(build_app(), ["models", "remove", "mine"])

    assert done.exit_code == 0
    assert "mine" not in model_names()
    again = CliRunner().invoke(build_app(), ["models", "remove", "mine"])
    assert "nothing is registered under the name 'mine'" in str(again.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "4"], "takes images of 8 pixels a side, the preprocessing crops to 4"),
        (["--layout", "NHWC"], "has the shape [?, 3, 8, 8], which is not NHWC"),
        (["--layout", "CHW"], "--layout must be one of NCHW, NHWC, got 'CHW'"),
        (["--input", "y"], "has no input 'y'; it has x"),
        (["--output", "y"], "has no output 'y'; it has scores"),
        (["--kind", "probabilities"], "do not add up to 1"),
        (["--embedding", "nothing"], "no node of the file outputs the embedding tensor 'nothing'"),
        (["--labels", "imagenet"], "--labels imagenet names 1000 classes, but m.onnx has 3"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(home, tmp_path, labels, options, message):
    path = build(tmp_path / "m.onnx")

    done = add(path, "--name", "mine", "--labels", labels, "--preprocess", "unit", *options)

    assert message in str(done.exception)
    assert "mine" not in model_names()


def test_a_preprocessing_that_is_not_said_is_asked_for_or_refused(home, tmp_path, labels):
    done = add(build(tmp_path / "m.onnx"), "--name", "mine", "--labels", labels)

    assert "--preprocess is missing: give the model's preprocessing, one of imagenet," in str(done.exception)


def test_a_file_that_is_not_there_is_an_error(home, tmp_path, labels):
    done = add(tmp_path / "gone.onnx", "--name", "mine", "--labels", labels, "--preprocess", "unit")

    assert isinstance(done.exception, ConfigError)
    assert "gone.onnx does not exist" in str(done.exception)


@pytest.mark.parametrize(
    "values",
    [["a", "b"], {"0": "a", "1": "b"}, {"id2label": {"1": "b", "0": "a"}}, {"label_names": ["a", "b"]}],
)
def test_labels_may_be_json(tmp_path, values):
    (tmp_path / "l.json").write_text(json.dumps(values))

    assert read_labels(str(tmp_path / "l.json")) == ["a", "b"]


def test_labels_keep_synset_ids_and_synonyms(home, tmp_path):
    (tmp_path / "l.txt").write_text("n00000001 red, crimson\nn00000002 green\nn00000003 blue\n")
    path = build(tmp_path / "m.onnx")

    add(path, "--name", "mine", "--labels", tmp_path / "l.txt", "--preprocess", "unit")

    assert load_labels(load_spec("mine")) == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("content", "message"), [("", "it is empty"), ("a\n\nb\n", "class 1 has no name"), (None, "cannot be read")]
)
def test_labels_that_name_nothing_are_refused(tmp_path, content, message):
    path = tmp_path / "l.txt"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=message):
        read_labels(str(path))
