"""A temperature in the graph: calibrated scores, and the very same labels."""

from __future__ import annotations

import numpy as np
import pytest

from models.catalog import load_spec
from models.errors import SignatureError
from models.graph.fp16 import load_graph
from models.graph.join import join_graph
from models.graph.temperature import divide_logits
from models.inference.classifier import Classifier, Provider
from models.session import GpuOptions
from models.spec import OutputKind, Precision
from tests.support.tiny_model import SIDE

TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_spec(str(tiny_model))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)


def classifier(spec, temperature=1.0, precision=Precision.FP32, **more):
    graph = load_graph(spec, precision, spec.folder / "tiny.onnx", temperature)
    return Classifier(spec, precision=precision, top_k=3, graph=graph, **more)


def softmax(logits):
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def test_scores_are_the_softmax_of_divided_logits_and_labels_stay(tiny, images):
    before = classifier(tiny).predict(images, probabilities=True, embedding=True)

    found = classifier(tiny, TEMPERATURE).predict(images, probabilities=True, embedding=True)

    expected = softmax(10.0 * before.embedding.astype(np.float64) / TEMPERATURE)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.label_ids, before.label_ids)
    np.testing.assert_array_equal(found.scores, np.take_along_axis(found.probabilities, found.label_ids, axis=1))
    np.testing.assert_array_equal(found.embedding, before.embedding)


def test_labels_whose_calibrated_scores_round_to_one_number_keep_their_order(tiny):
    graph = join_graph(tiny, (tiny.folder / "tiny.onnx").read_bytes())
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    images[..., 2] = 1  # blue is ahead by a hair, which a large temperature rounds away

    found = Classifier(tiny, precision=Precision.FP32, top_k=3, graph=divide_logits(graph, 1e7)).predict(images)

    assert found.scores[0, 0] == found.scores[0, 1]
    assert found.label_ids.tolist() == [[2, 0, 1]]


def test_a_model_that_gives_probabilities_is_calibrated_by_their_logarithms(tiny, images):
    """The tiny model's ten times means, taken for probabilities: what counts is their ratio."""
    spec = tiny.model_copy(update={"output": tiny.output.model_copy(update={"kind": OutputKind.PROBABILITIES})})
    graph = join_graph(spec, (spec.folder / "tiny.onnx").read_bytes())
    images = np.concatenate([images, np.zeros((1, SIDE, SIDE, 3), np.uint8)])
    before = Classifier(spec, precision=Precision.FP32, top_k=3, graph=graph).predict(images, probabilities=True)

    graph = divide_logits(graph, TEMPERATURE)
    found = Classifier(spec, precision=Precision.FP32, top_k=3, graph=graph).predict(images, probabilities=True)

    values = np.maximum(before.probabilities, np.finfo(np.float32).tiny).astype(np.float64)
    np.testing.assert_allclose(found.probabilities, softmax(np.log(values) / TEMPERATURE), rtol=1e-5)
    np.testing.assert_allclose(found.probabilities[-1], 1 / 3, rtol=1e-6)  # black: three probabilities of 0
    np.testing.assert_array_equal(found.label_ids, before.label_ids)


@pytest.mark.parametrize("count", [1, 16, 40])
def test_the_path_for_gpus_gives_the_same_bits(tiny, images, count):
    expected = classifier(tiny, TEMPERATURE).predict(images[:count])

    gpu = GpuOptions(batch_size=16)
    found = classifier(tiny, TEMPERATURE, provider=Provider.CPU, gpu=gpu).predict(images[:count])

    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.label_ids, expected.label_ids)


def test_float16_is_calibrated_behind_the_conversion(tiny, images):
    half, found = (
        classifier(tiny, temperature, Precision.FP16).predict(images, probabilities=True)
        for temperature in (1.0, TEMPERATURE)
    )

    expected = half.probabilities.astype(np.float64) ** (1 / TEMPERATURE)
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)


def test_graphs_of_two_temperatures_are_kept_apart(tiny, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path))

    graphs = [load_graph(tiny, Precision.FP32, tiny_model, value) for value in (1.0, 1.5, 1.25)]

    assert len(set(graphs)) == len(list((tmp_path / "graphs").iterdir())) == 3
    assert load_graph(tiny, Precision.FP32, tiny_model.with_name("not-needed-now.onnx"), 1.5) == graphs[1]


def test_a_graph_that_is_none_of_ours_is_refused(tiny_model):
    with pytest.raises(SignatureError, match="without probabilities"):
        divide_logits(tiny_model.read_bytes(), 2.0)
