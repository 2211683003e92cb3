"""The path for GPUs, run by the CPU's provider; and what is done about a GPU that fails, with a session that does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from models.catalog import load_spec
from models.errors import DeviceLostError, DeviceMemoryError, InferenceError, SignatureError
from models.inference.classifier import Classifier, Provider
from models.session import GpuOptions
from models.spec import Precision
from tests.support.tiny_model import SIDE


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return load_spec(str(tiny_model))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (50, SIDE, SIDE, 3), dtype=np.uint8)


def on_cpu(tiny, **options) -> Classifier:
    return Classifier(
        tiny,
        precision=Precision.FP32,
        provider=Provider.CPU,
        top_k=3,
        gpu=GpuOptions(**{"batch_size": 16, **options}),
    )


@pytest.mark.parametrize("count", [0, 1, 16, 17, 50])
def test_padded_batches_give_what_plain_runs_give(tiny, images, count):
    expected = Classifier(tiny, precision=Precision.FP32, top_k=3).predict(images[:count])

    found = on_cpu(tiny).predict(images[:count])

    assert (found.label_ids == expected.label_ids).all()
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (found.label_ids.dtype, found.scores.dtype) == (np.int32, np.float32)


def test_probabilities_and_embeddings_are_cut_to_the_images_given(tiny, images):
    expected = Classifier(tiny, precision=Precision.FP32, top_k=3).predict(images, probabilities=True, embedding=True)

    found = on_cpu(tiny).predict(images, probabilities=True, embedding=True)

    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.embedding, expected.embedding)
    assert (found.label_ids == expected.label_ids).all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_another_number_of_labels_may_be_asked_of_a_batch(tiny, images, top_k):
    expected = Classifier(tiny, precision=Precision.FP32, top_k=3).predict(images, top_k=top_k)

    found = on_cpu(tiny).predict(images, top_k=top_k)

    np.testing.assert_array_equal(found.label_ids, expected.label_ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.probabilities is None


def test_more_threads_than_slots_may_call(tiny, images):
    classifier = on_cpu(tiny, slots=2)
    expected = classifier.predict(images)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(classifier.predict, [images] * 24))

    assert all((result.scores == expected.scores).all() for result in results)


def test_other_images_are_refused_as_the_plain_classifier_refuses_them(tiny):
    with pytest.raises(SignatureError, match=r"must be uint8 of shape \(n_images, 8, 8, 3\)"):
        on_cpu(tiny).predict(np.zeros((1, 9, 8, 3), np.uint8))


class Faulty:
    """A session that fails as ONNX Runtime does on a GPU."""

    def __init__(self, session, text: str, *, largest: int = 0, until: int = 10**9) -> None:
        self._session = session
        self._text = text
        self._largest = largest
        self._left = until

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def run(self, names, feed, options=None):
        self._fail(len(feed["images"]))
        return self._session.run(names, feed, options)

    def run_with_iobinding(self, binding):
        self._fail(int(binding.get_outputs()[0].shape()[0]))
        return self._session.run_with_iobinding(binding)

    def _fail(self, images: int) -> None:
        if images > self._largest and self._left > 0:
            self._left -= 1
            raise RuntimeError(self._text)


OUT_OF_MEMORY = "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);"
BFC = "Non-zero status code returned while running Conv node. BFCArena::AllocateRawInternal Failed to allocate memory"
LOST = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize(stream)"


@pytest.fixture
def session_that_fails(monkeypatch):
    """Have every session fail with a text for batches above a size."""

    def install(text: str, largest: int) -> None:
        real = ort.InferenceSession
        monkeypatch.setattr(ort, "InferenceSession", lambda *a, **k: Faulty(real(*a, **k), text, largest=largest))

    return install


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, BFC])
def test_too_little_memory_halves_the_batch_once_and_says_so(tiny, images, session_that_fails, text):
    expected = on_cpu(tiny).predict(images)
    session_that_fails(text, largest=8)

    classifier = on_cpu(tiny)

    assert classifier.runner.batch_size == 8
    assert classifier.runner.notes == [
        "the GPU has too little memory for batches of 16, so they were halved; use --batch-size 8 next time"
    ]
    np.testing.assert_array_equal(classifier.predict(images).scores, expected.scores)


def test_memory_that_runs_out_later_halves_the_batch_too_and_no_image_is_lost(tiny, images):
    classifier = on_cpu(tiny)
    expected = classifier.predict(images)
    classifier.runner._session = Faulty(classifier.runner._session, OUT_OF_MEMORY, largest=8)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(classifier.predict, [images] * 8))

    assert classifier.runner.batch_size == 8
    assert all((result.scores == expected.scores).all() for result in results)


def test_a_second_time_is_an_error_that_names_the_option(tiny, session_that_fails):
    session_that_fails(OUT_OF_MEMORY, largest=4)

    with pytest.raises(DeviceMemoryError, match="even after halving them; use a smaller --batch-size"):
        on_cpu(tiny)


def test_a_lost_gpu_and_any_other_failure_are_told_apart(tiny, images):
    classifier = on_cpu(tiny)
    session = classifier.runner._session

    classifier.runner._session = Faulty(session, LOST, until=1)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        classifier.predict(images)
    classifier.runner._session = Faulty(session, "some node has an input of the wrong shape", until=1)
    with pytest.raises(InferenceError, match="wrong shape") as caught:
        classifier.predict(images)

    assert not isinstance(caught.value, DeviceLostError | DeviceMemoryError)
    assert len(classifier.predict(images).label_ids) == len(images)


@pytest.mark.gpu
def test_on_a_gpu_the_labels_are_those_of_the_cpu(tiny, images):
    from pipeline.job import has_local_gpu

    if not has_local_gpu():
        pytest.skip("this machine has no GPU")
    expected = on_cpu(tiny).predict(images)

    for graphs in (False, True):
        gpu = GpuOptions(16, cuda_graphs=graphs)
        found = Classifier(tiny, precision=Precision.FP32, top_k=3, gpu=gpu).predict(images)
        assert (found.label_ids == expected.label_ids).all()
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
