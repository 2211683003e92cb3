"""What the log keeps of answers, and what it does where it cannot keep them; no answer waits for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import logging
import threading
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from models.decode.decode import DecodeMode
from models.errors import StorageError
from models.inference.classifier import choose
from models.spec import Precision
from pipeline.dest.prediction_log import begin_log, open_records
from pipeline.dest.verify import verify_dest
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.metrics import ServeMetrics
from serve.model import prediction_log
from serve.model.models import Models
from serve.model.outcomes import set_request_id
from serve.model.settled import Settled
from serve.routes import build_asgi
from tests.support.asgi_client import request
from tests.support.fake_backend import FakeBackend
from tests.support.labelled_dest import label_without_ray
from tests.support.tiny_model import colour_jpeg, write_tar
from tests.unit.serve.model.test_engine import build, use
from tests.unit.serve.oip.test_grpc import Context, Ingress, raw_images

JPEG = b"\xff\xd8\xff" + b"\0" * 3
OTHER = b"\xff\xd8\xff" + b"\0" * 4


@contextlib.contextmanager
def logging_to(folder: Path, backend: FakeBackend, **settings):
    """Give a backend that is logged, and the metrics of the log."""
    begin_log(open_storage(str(folder)))
    config = ServeConfig(model="efficientnet-lite0", prediction_log=str(folder), **settings)
    metrics = ServeMetrics("m", "r")
    choice = choose(backend.spec, config.device, Precision.INT8, has_gpu=False)
    settled, count = Settled(backend.spec, choice, None), partial(metrics.logged, backend.spec.name)
    backend.log = prediction_log.PredictionLog(config, settled, backend.labels, count)
    try:
        yield backend, metrics
    finally:
        backend.close()


def ask(backend, *images: bytes, top_k: int = 3):
    return asyncio.run(backend.label(images, top_k=top_k, deadline=time.monotonic() + 10))


def rows(folder: Path) -> list[dict]:
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def series(metrics: ServeMetrics, name: str) -> dict[str, float]:
    """Return the values of a metric, by reason."""
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith(f"shardlabel_{name}{{")]
    return {line.partition('reason="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_answer_is_a_row_that_names_its_image_request_and_model(tmp_path):
    with logging_to(tmp_path, FakeBackend(), top_k=2) as (backend, metrics):
        set_request_id("first")
        ask(backend, JPEG, b"bad")
        set_request_id("second")
        ask(backend, OTHER)
    first, bad, second = rows(tmp_path)

    assert [row["key"] for row in (first, bad, second)] == [sha256(i).hexdigest() for i in (JPEG, b"bad", OTHER)]
    assert [row["request_id"] for row in (first, bad, second)] == ["first", "first", "second"]
    assert (first["label"], first["top_labels"], second["label"]) == ("red", ["red", "green"], "green")
    assert (bad["status"], bad["error"], bad["label"], bad["width"]) == (
        "undecodable", "JPEG cannot be decoded: its data are truncated", None, 4,
    )  # fmt: skip
    assert first["shard"] == "efficientnet-lite0"
    assert first["model"].startswith("efficientnet-lite0:int8:fast@")
    assert abs(first["time"].timestamp() - time.time()) < 60
    assert series(metrics, "prediction_log_rows_total") == {"": 3}
    assert verify_dest(open_storage(str(tmp_path))).ok


def test_rows_are_those_of_label_for_the_same_images(tmp_path, tiny_model):
    images = {"a.jpg": colour_jpeg("red"), "b.jpg": colour_jpeg("green", 40, 30), "c.jpg": colour_jpeg("blue")[:300]}
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", images)
    label_without_ray(tmp_path / "in", tmp_path / "bulk", tiny_model)
    engine = build(str(tiny_model))
    begin_log(open_storage(str(tmp_path / "log")))
    config = ServeConfig(model=str(tiny_model), prediction_log=str(tmp_path / "log"), top_k=3)
    engine.log = prediction_log.PredictionLog(config, engine.settled, engine.labels, lambda *_: None)

    found = use(engine, lambda e: e.label(list(images.values()), top_k=1, deadline=time.monotonic() + 30))

    assert [len(one.label_ids) for one in found[:2]] == [1, 1]  # as it was asked for, whatever the log keeps
    (bulk,), (log,) = ([*(tmp_path / name).glob("*.parquet")] for name in ("bulk", "log"))
    bulk, log = pq.read_table(bulk), pq.read_table(log)
    assert log.schema.names[: len(bulk.schema.names)] == bulk.schema.names
    assert all(log.schema.field(name).type == bulk.schema.field(name).type for name in bulk.schema.names)
    assert log.schema.names[len(bulk.schema.names) :] == ["accepted", "request_id", "model", "time"]
    answered = [name for name in bulk.schema.names if name not in ("shard", "key")]
    assert log.select(answered).to_pylist() == bulk.select(answered).to_pylist()
    kept = {b"shardlabel.model", b"shardlabel.artifact_sha256", b"shardlabel.precision", b"shardlabel.preprocessing"}
    assert {key: log.schema.metadata[key] for key in kept} == {key: bulk.schema.metadata[key] for key in kept}
    assert DecodeMode.FAST.value == log.schema.metadata[b"shardlabel.decode"].decode()


def test_the_edge_says_which_request_it_is(tmp_path):
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(JPEG).decode()]}
    by_header = {"content_type": "image/jpeg", "x_request_id": "by-header"}
    with logging_to(tmp_path, FakeBackend()) as (backend, _):
        config = ServeConfig(model="efficientnet-lite0")
        app = build_asgi(Models(backend), config)
        for path, body, headers in (
            ("/v1/classify", JPEG, by_header),
            ("/models/efficientnet-lite0", JPEG, {"content_type": "image/jpeg"}),
            ("/v1/classify", JPEG, {"content_type": "image/jpeg", "x_request_id": "long" * 1000}),
            (
                "/v2/models/efficientnet-lite0/infer",
                json.dumps({"inputs": [tensor], "id": "own in JSON"}).encode(),
                by_header,
            ),
            ("/v2/models/efficientnet-lite0/infer", json.dumps({"inputs": [tensor]}).encode(), by_header),
        ):
            answer = asyncio.run(request(app, "POST", path, body, **headers))
            assert answer.status == 200, answer.body
        ingress = Ingress(models=Models(backend), limits=config)
        for more in ({"id": "own"}, {}):
            message = raw_images(JPEG, **more)
            message.model_name = "efficientnet-lite0"
            context = Context([("x-request-id", "by-metadata")])
            asyncio.run(ingress.ModelInfer(message.SerializeToString(), context))
            assert context.code is grpc.StatusCode.OK, context.details

    assert [row["request_id"] for row in rows(tmp_path)] == [
        "by-header", "", "long" * 50, "own in JSON", "by-header", "own", "by-metadata",
    ]  # fmt: skip


def test_so_many_rows_wait_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "QUEUE_ROWS", 4)
    monkeypatch.setattr(prediction_log, "PERIOD_S", 3600.0)  # until it is closed
    with logging_to(tmp_path, FakeBackend()) as (backend, metrics):
        time.sleep(0.2)
        ask(backend, *[JPEG] * 3)
        ask(backend, *[JPEG] * 3)
        ask(backend, JPEG)
        assert series(metrics, "prediction_log_dropped_total")["queue_full"] == 3
    assert len(rows(tmp_path)) == 4


def test_while_a_part_file_is_under_way_rows_are_taken_up_to_a_bound_and_answers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "PART_ROWS", 2)
    monkeypatch.setattr(prediction_log, "QUEUE_ROWS", 4)
    write, goes_on = prediction_log.write_part, threading.Event()
    monkeypatch.setattr(prediction_log, "write_part", lambda *args: goes_on.wait(20) and write(*args))
    with logging_to(tmp_path, FakeBackend()) as (backend, metrics):
        started = time.monotonic()
        for _ in range(12):  # two are written, four wait
            ask(backend, JPEG)
            time.sleep(0.2)
        assert time.monotonic() - started < 10
        assert series(metrics, "prediction_log_dropped_total") == {"queue_full": 6, "storage": 0, "internal": 0}
        assert rows(tmp_path) == []
        goes_on.set()
    assert len(rows(tmp_path)) == 6
    assert series(metrics, "prediction_log_rows_total") == {"": 6}


def test_a_full_disk_costs_rows_which_are_counted_and_then_it_goes_on(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "serve")  # whatever tests before have told Ray's loggers
    monkeypatch.setattr(prediction_log, "PART_ROWS", 2)
    write, is_full = prediction_log.write_part, threading.Event()

    def write_part(*args):
        if is_full.is_set():
            raise StorageError("cannot write: no space left on the device") from OSError(errno.ENOSPC, "full")
        write(*args)

    monkeypatch.setattr(prediction_log, "write_part", write_part)
    with logging_to(tmp_path, FakeBackend()) as (backend, metrics):
        is_full.set()
        for _ in range(3):
            before = series(metrics, "prediction_log_dropped_total")["storage"]
            ask(backend, JPEG, b"bad")
            until(lambda b=before: series(metrics, "prediction_log_dropped_total")["storage"] == b + 2)
        is_full.clear()
        ask(backend, OTHER, OTHER)
        until(lambda: series(metrics, "prediction_log_rows_total") == {"": 2})

    assert [row["label"] for row in rows(tmp_path)] == ["green", "green"]
    assert [record.getMessage() for record in caplog.records] == [
        "prediction log: 2 rows dropped: cannot write: no space left on the device"
    ] * 3


def test_rows_are_seen_after_a_while_and_each_file_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "PART_SECONDS", 0.2)
    with logging_to(tmp_path, FakeBackend()) as (backend, _):
        ask(backend, JPEG)
        until(lambda: len(rows(tmp_path)) == 1)
        ask(backend, OTHER)
        until(lambda: len(rows(tmp_path)) == 2)

    plan, records = open_records(open_storage(str(tmp_path)))
    assert (plan.units, [record.rows for record in records]) == (2, [1, 1])


def test_a_log_may_be_written_by_several_and_goes_on_after_a_restart(tmp_path):
    for _ in range(2):
        with logging_to(tmp_path, FakeBackend()) as (one, _), logging_to(tmp_path, FakeBackend()) as (other, _):
            ask(one, JPEG)
            ask(other, OTHER)

    assert sorted(row["label"] for row in rows(tmp_path)) == ["green", "green", "red", "red"]
    assert verify_dest(open_storage(str(tmp_path))).ok


@pytest.mark.parametrize("name", ["prediction_log", "baseline", "calibration"])
def test_a_relative_folder_is_the_callers(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert getattr(ServeConfig(**{name: "log"}), name) == str(tmp_path / "log")
    assert getattr(ServeConfig(**{name: "s3://bucket/log"}), name) == "s3://bucket/log"
