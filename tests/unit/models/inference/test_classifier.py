from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from models.catalog import load_spec
from models.errors import ArtifactError, ProviderUnavailableError, SignatureError, UnknownModelError
from models.graph.cache import load_joined_graph
from models.graph.join import join_graph
from models.inference.classifier import Classifier, Device, Provider, choose
from models.spec import Layout, Precision
from tests.support.made_up_resnet import build_made_up_resnet
from tests.support.tiny_model import SIDE


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_spec(str(tiny_model))


@pytest.fixture(scope="module")
def classifier(tiny):
    return Classifier(tiny, precision=Precision.FP32, top_k=3)


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in colours])


def test_labels_are_those_that_can_be_worked_out_by_hand(classifier):
    predictions = classifier.predict(plain((255, 0, 51), (0, 255, 0)), probabilities=True, embedding=True)

    logits = np.asarray([[10, 0, 2], [0, 10, 0]], np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-5)
    assert predictions.label_ids.tolist() == [[0, 2, 1], [1, 0, 2]]
    np.testing.assert_allclose(predictions.scores[0], expected[0][[0, 2, 1]], rtol=1e-5)
    np.testing.assert_allclose(predictions.embedding, logits / 10, atol=1e-6)
    assert (predictions.label_ids.dtype, predictions.scores.dtype) == (np.int32, np.float32)


def test_equal_scores_keep_the_lower_class_first(classifier):
    assert classifier.predict(plain((9, 9, 9), (0, 77, 77))).label_ids.tolist() == [[0, 1, 2], [1, 2, 0]]


def test_no_images_give_no_rows(classifier):
    predictions = classifier.predict(np.empty((0, SIDE, SIDE, 3), np.uint8))

    assert predictions.label_ids.shape == predictions.scores.shape == (0, 3)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(np.zeros((1, SIDE, SIDE, 3), np.float32), id="dtype"),
        pytest.param(np.zeros((1, 3, SIDE, SIDE), np.uint8), id="layout"),
        pytest.param(np.zeros((SIDE, SIDE, 3), np.uint8), id="no-batch-axis"),
    ],
)
def test_another_shape_or_dtype_is_refused_with_what_was_expected(classifier, images):
    with pytest.raises(SignatureError, match=r"must be uint8 of shape \(n_images, 8, 8, 3\), got"):
        classifier.predict(images)


def test_top_k_beyond_the_classes_is_refused(tiny):
    with pytest.raises(SignatureError, match=r"top_k must be between 1 and 3 .*got 4"):
        Classifier(tiny, precision=Precision.FP32, top_k=4)


def test_a_provider_that_is_not_there_is_refused_and_never_replaced(tiny, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(ProviderUnavailableError, match="this build of ONNX Runtime has no CUDAExecutionProvider, only"):
        Classifier(tiny, precision=Precision.FP32, provider=Provider.CUDA)


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="a build without CUDA")
def test_a_silent_fall_back_to_the_cpu_is_refused(tiny):
    from pipeline.job import has_local_gpu

    if has_local_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ProviderUnavailableError, match=r"CUDA"):
        Classifier(tiny, precision=Precision.FP32, provider=Provider.CUDA)


def test_predict_may_be_called_from_several_threads(classifier):
    images = np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8)
    expected = classifier.predict(images)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(classifier.predict, [images] * 32))

    assert all((result.scores == expected.scores).all() for result in results)


def test_cuda_without_a_gpu_is_refused_before_anything_is_loaded(tiny):
    with pytest.raises(
        ProviderUnavailableError, match="--device cuda needs a GPU, but none was found; use --device cpu"
    ):
        choose(tiny, Device.CUDA, "auto", has_gpu=False)


def test_auto_takes_int8_on_a_cpu_and_says_why():
    choice = choose(load_spec("efficientnet-lite0"), Device.AUTO, "auto", has_gpu=False)

    assert (choice.provider, choice.precision) == (Provider.CPU, Precision.INT8)
    assert "int8 on CPU (chosen by auto)" in choice.reason


def test_a_precision_that_the_model_lacks_is_refused(tiny):
    with pytest.raises(UnknownModelError, match="got int8"):
        choose(tiny, Device.CPU, "int8", has_gpu=False)


@pytest.fixture(scope="module")
def made_up_resnet(tmp_path_factory):
    return build_made_up_resnet(tmp_path_factory.mktemp("resnet") / "resnet18-v2-7.onnx")


def test_the_made_up_resnet_has_the_size_of_the_zoos(made_up_resnet):
    real = load_spec("resnet18-v2").artifact(Precision.FP32).size_bytes

    assert abs(made_up_resnet.stat().st_size - real) < 1024


def test_the_joined_resnet_agrees_with_preprocessing_and_softmax_done_outside(made_up_resnet):
    spec = load_spec("resnet18-v2")
    images = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    mean, std = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    data = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    (logits,) = ort.InferenceSession(str(made_up_resnet), providers=["CPUExecutionProvider"]).run(
        None, {"data": np.ascontiguousarray(data)}
    )
    expected = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)

    joined = join_graph(spec, made_up_resnet.read_bytes())
    predictions = Classifier(spec, precision=Precision.FP32, graph=joined).predict(images, probabilities=True)

    assert np.abs(predictions.probabilities - expected).max() < 1e-5
    assert predictions.label_ids.tolist() == np.argsort(-expected, axis=1)[:, :5].tolist()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_no_constant_of_the_preprocessing_is_broadcast_over_runs_of_three(layout, made_up_resnet):
    spec = load_spec("resnet18-v2")
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"layout": Layout(layout)})})

    graph = onnx.load_model_from_string(join_graph(spec, made_up_resnet.read_bytes())).graph

    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    # ONNX Runtime turns NCHW to NHWC where that suits it: then too the last two axes vary together.
    wanted = [1, 3, 1, 224] if layout == "NCHW" else [1, 1, 224, 3]
    assert shapes["shardlabel_factor"] == shapes["shardlabel_offset"] == wanted


def test_one_image_has_the_same_scores_in_every_batch(made_up_resnet):
    spec = load_spec("resnet18-v2")
    classifier = Classifier(spec, precision=Precision.FP32, graph=join_graph(spec, made_up_resnet.read_bytes()))
    images = np.random.default_rng(2).integers(0, 256, (7, 224, 224, 3), dtype=np.uint8)

    together = classifier.predict(images)
    apart = [classifier.predict(images[i : i + 1]) for i in range(7)]

    assert (np.concatenate([p.scores for p in apart]) == together.scores).all()


def nhwc_probabilities(folder):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Softmax", ["means"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("p", 1, ["n", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "n.onnx")
    return folder / "n.onnx"


def test_a_model_may_take_nhwc_and_give_probabilities(tmp_path, tiny_model):
    path = nhwc_probabilities(tmp_path)
    entry = tiny_model.with_suffix(".toml").read_text()
    changes = {"pixels": "x", "NCHW": "NHWC", '"scores"': '"p"', "logits": "probabilities"}
    for old, new in changes.items():
        entry = entry.replace(old, new)
    path.with_suffix(".toml").write_text(entry.replace('embedding = "means"\n', ""))
    (tmp_path / "colours.txt").write_text("red\ngreen\nblue\n")

    predictions = Classifier(load_spec(str(path)), precision=Precision.FP32, top_k=1).predict(plain((0, 0, 255)))

    assert predictions.label_ids.tolist() == [[2]]
    np.testing.assert_allclose(predictions.scores, [[np.e / (np.e + 2)]], rtol=1e-5)


@pytest.mark.parametrize("name", ["images", "k", "probabilities", "top_ids", "embedding", "shardlabel_float"])
def test_a_model_may_use_any_of_our_own_names(tiny, tiny_model, name):
    model = onnx.load(tiny_model)
    model.graph.node[0].input[0] = model.graph.input[0].name = name
    spec = tiny.model_copy(update={"input": tiny.input.model_copy(update={"name": name})})

    classifier = Classifier(spec, precision=Precision.FP32, top_k=1, graph=join_graph(spec, model.SerializeToString()))

    assert classifier.predict(plain((0, 9, 0))).label_ids.tolist() == [[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"input": {"name": "image"}}, "expected an input 'image', the file has pixels", id="input"),
        pytest.param({"output": {"name": "odds", "kind": "logits"}}, "output 'odds', the file has scores", id="output"),
        pytest.param({"embedding": "features"}, "embedding tensor 'features'", id="embedding"),
    ],
)
def test_tensors_that_the_file_lacks_are_named(tiny, tiny_model, change, message):
    spec = type(tiny).model_validate({**tiny.model_dump(), **change})

    with pytest.raises(SignatureError, match=message):
        join_graph(spec, tiny_model.read_bytes())


def test_a_second_input_is_refused(tiny, tiny_model):
    model = onnx.load(tiny_model)
    model.graph.input.append(helper.make_tensor_value_info("mask", 1, ["n"]))

    with pytest.raises(SignatureError, match="also got 'mask'"):
        join_graph(tiny, model.SerializeToString())


def test_bytes_that_are_no_model_are_refused(tiny):
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        join_graph(tiny, b"\xff\xfe not a model")


def test_weights_listed_as_inputs_are_not_inputs(tiny, tiny_model):
    model = onnx.load(tiny_model)
    model.graph.input.append(helper.make_tensor_value_info("ten", 1, []))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(10), "ten"))

    session = ort.InferenceSession(join_graph(tiny, model.SerializeToString()), providers=["CPUExecutionProvider"])

    assert [i.name for i in session.get_inputs()] == ["images"]


def test_the_joined_graph_is_cached_and_a_damaged_cache_is_built_anew(tiny, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path))
    artifact = tiny.artifact(Precision.FP32)
    first = load_joined_graph(tiny, artifact, tiny_model)
    (cached,) = (tmp_path / "graphs").iterdir()

    assert load_joined_graph(tiny, artifact, tmp_path / "not-needed-now") == first
    cached.write_bytes(cached.read_bytes()[:-1] + b"?")
    assert load_joined_graph(tiny, artifact, tiny_model) == first


def test_a_cache_that_cannot_be_written_does_no_harm(tiny, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "file"))

    assert load_joined_graph(tiny, tiny.artifact(Precision.FP32), tiny_model)
