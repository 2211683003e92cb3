"""The engine with real models: the same labels as the bulk stages give, and what it refuses."""

from __future__ import annotations

import asyncio
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.errors import ImageTooLargeError, SignatureError, UndecodableImageError
from models.inference.classifier import Classifier, Provider
from models.inference.tensor_model import TensorModel
from models.spec import Precision
from serve.config import ServeConfig, plan_replica
from serve.http.in_flight import Extras
from serve.metrics import ServeMetrics
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Labelled
from serve.model.settled import settle
from serve.routes import build_asgi
from tests.support.asgi_client import request
from tests.support.tiny_model import colour_jpeg

SAMPLES = Path(__file__).parents[4] / "models" / "samples" / "photos.tar"


def build(model: str, *, report=lambda _: None, **settings) -> Engine:
    config = ServeConfig(**{"model": model, "precision": "fp32"} | settings)
    return Engine(settle(model, config, has_gpu=False), config, plan_replica(config, on_gpu=False, cpus=1), report)


def use(engine: Engine, call):
    """Use an engine in a loop of its own: await what `call` gives."""

    async def run():
        try:
            return await call(engine)
        finally:
            engine.close()

    return asyncio.run(run())


def label(engine: Engine, *images: bytes, top_k: int = 3, **more):
    return use(engine, lambda e: e.label(images, top_k=top_k, deadline=time.monotonic() + 30, **more))


@pytest.fixture
def engine(tiny_model):
    return build(str(tiny_model))


def test_it_is_ready_once_it_is_built(engine):
    assert engine.is_ready


def test_images_are_labelled_and_bad_ones_are_values(engine):
    red, bad, blue = label(engine, colour_jpeg("red"), b"no image", colour_jpeg("blue"), top_k=2)

    assert isinstance(red, Labelled)
    assert isinstance(blue, Labelled)
    assert (engine.labels[red.label_ids[0]], engine.labels[blue.label_ids[0]]) == ("red", "blue")
    assert (red.width, red.height) == (20, 16)
    assert red.label_ids.shape == red.scores.shape == (2,)
    assert red.probabilities is None
    assert isinstance(bad, UndecodableImageError)


def test_each_request_of_a_batch_gets_what_it_asked_for(engine):
    image = colour_jpeg("green")

    async def both(e):
        deadline = time.monotonic() + 30
        return await asyncio.gather(
            e.label([image], top_k=1, deadline=deadline),
            e.label([image], top_k=3, deadline=deadline, probabilities=True),
        )

    (one,), (three,) = use(engine, both)

    assert one.label_ids.tolist() == three.label_ids[:1].tolist() == [1]
    assert (len(one.label_ids), len(three.label_ids)) == (1, 3)
    assert one.probabilities is None
    np.testing.assert_array_equal(three.probabilities[three.label_ids], three.scores)


def test_embeddings_have_the_bits_that_bulk_writes_whatever_the_batch():
    with tarfile.open(SAMPLES) as tar:
        photos = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")][:4]
    engine = build("efficientnet-lite0", precision="int8")
    classifier = Classifier(engine.spec, precision=Precision.INT8, provider=Provider.CPU)

    async def ask(e):
        deadline = time.monotonic() + 30
        return await asyncio.gather(
            e.label(photos, top_k=1, deadline=deadline, embedding=True), e.label(photos[:1], top_k=1, deadline=deadline)
        )

    found, (plain,) = use(engine, ask)

    for outcome, photo in zip(found, photos, strict=True):
        image = decode_image(photo, engine.spec.preprocessing, DecodeMode.FAST, ImageLimits())
        (alone,) = classifier.predict(image.pixels[np.newaxis], embedding=True).embedding
        assert outcome.embedding.dtype == np.float32
        assert outcome.embedding.tobytes() == alone.tobytes()
    assert plain.embedding is None


def test_the_limit_on_pixels_holds(tiny_model):
    (outcome,) = label(build(str(tiny_model), max_pixels=100), colour_jpeg("red"))

    assert isinstance(outcome, ImageTooLargeError)


def test_a_fault_of_ours_in_decoding_is_500_logged_and_counted_and_the_images_own(engine, monkeypatch, caplog):
    def fail(data, *more):
        if data == b"ours":
            raise RuntimeError("secret")
        return decode_image(data, *more)

    monkeypatch.setattr("serve.model.engine.decode_image", fail)
    metrics = ServeMetrics("m", "r")

    async def ask(started):
        app = build_asgi(Models(started), ServeConfig(), Extras(metrics=metrics))
        bodies = (b"ours", b"no image", colour_jpeg("red"))
        return await asyncio.gather(
            *[request(app, "POST", "/v1/classify?top_k=1", body, content_type="image/jpeg") for body in bodies]
        )

    ours, undecodable, good = use(engine, ask)

    assert (ours.status, undecodable.status, good.status) == (500, 422, 200)
    assert b"secret" not in ours.body
    assert "Traceback" in caplog.text
    assert "RuntimeError: secret" in caplog.text
    assert 'kind="internal",model="m",replica="r",route="/v1/classify"} 1.0' in metrics.render().decode()


def test_the_models_own_tensors_go_in_and_out(engine):
    batch = np.random.default_rng(1).random((3, 3, 8, 8)).astype(np.float32)

    output = use(engine, lambda e: e.run_tensor(batch, deadline=time.monotonic() + 30))

    np.testing.assert_allclose(output, 10 * batch.mean(axis=(2, 3)), rtol=1e-5)


def test_a_tensor_of_many_images_is_run_in_batches(engine, monkeypatch):
    sizes, run = [], TensorModel.run
    batch = np.random.default_rng(1).random((20, 3, 8, 8)).astype(np.float32)

    async def ask(e):
        await e.run_tensor(np.zeros((1, 3, 8, 8), np.float32), deadline=time.monotonic() + 30)
        monkeypatch.setattr(TensorModel, "run", lambda self, batch: sizes.append(len(batch)) or run(self, batch))
        return await e.run_tensor(batch, deadline=time.monotonic() + 30)

    output = use(engine, ask)

    np.testing.assert_allclose(output, 10 * batch.mean(axis=(2, 3)), rtol=1e-5)
    assert sizes == [8, 8, 4]


def test_tensors_and_images_that_share_batches_each_get_their_own_answer(engine):
    batches = np.random.default_rng(1).random((12, 2, 3, 8, 8)).astype(np.float32)

    async def ask(e):
        deadline = time.monotonic() + 30
        tensors = [e.run_tensor(batch, deadline=deadline) for batch in batches]
        images = [e.label([colour_jpeg(colour)], top_k=1, deadline=deadline) for colour in ("red", "blue", "green")]
        return await asyncio.gather(*tensors, *images)

    *outputs, (red,), (blue,), (green,) = use(engine, ask)

    np.testing.assert_allclose(outputs, 10 * batches.mean(axis=(3, 4)), rtol=1e-5)
    assert [engine.labels[one.label_ids[0]] for one in (red, blue, green)] == ["red", "blue", "green"]


@pytest.mark.parametrize(
    "batch",
    [np.zeros((1, 3, 9, 8), np.float32), np.zeros((1, 3, 8, 8), np.float64), np.zeros((0, 3, 8, 8), np.float32)],
    ids=["shape", "dtype", "empty"],
)
def test_a_tensor_of_another_kind_is_refused_and_fails_nothing_else(engine, batch):
    async def both(e):
        deadline = time.monotonic() + 30
        return await asyncio.gather(
            e.run_tensor(batch, deadline=deadline),
            e.label([colour_jpeg("red")], top_k=1, deadline=deadline),
            return_exceptions=True,
        )

    refused, (labelled,) = use(engine, both)

    assert isinstance(refused, SignatureError)
    assert isinstance(labelled, Labelled)


def test_batches_that_go_on_failing_are_a_fault(engine, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error")

    async def some(e):
        faults = []
        for _ in range(6):
            with pytest.raises(RuntimeError):
                await e.label([colour_jpeg("red")], top_k=1, deadline=time.monotonic() + 30)
            faults.append(e.fault())
        return faults

    monkeypatch.setattr(engine._classifier, "predict", fail)
    faults = use(engine, some)

    assert faults[:4] == [None] * 4
    assert "batches failed" in faults[-1]


@pytest.mark.parametrize("mode", list(DecodeMode))
def test_labels_are_those_that_the_bulk_stages_give(mode):
    engine = build("efficientnet-lite0", precision="int8", decode=mode)
    classifier = Classifier(engine.spec, precision=Precision.INT8, top_k=5)
    with tarfile.open(SAMPLES) as tar:
        images = [tar.extractfile(m).read() for m in tar if not m.name.endswith(".cls")]
    pixels = [decode_image(i, engine.spec.preprocessing, mode, ImageLimits()).pixels for i in images]
    bulk = classifier.predict(np.stack(pixels))

    online = label(engine, *images, top_k=5)

    np.testing.assert_array_equal([outcome.label_ids for outcome in online], bulk.label_ids)
    np.testing.assert_allclose([outcome.scores for outcome in online], bulk.scores, atol=1e-5)
