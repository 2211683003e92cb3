"""`label --calibration`: calibrated scores and `accepted`, the same in each shape of the pipeline, in Python and online."""

from __future__ import annotations

import asyncio
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from models.calibration import parse_calibration
from models.errors import ConfigError
from models.inference.classifier import Device
from models.spec import Precision
from pipeline import label as label_dataset
from pipeline import read_shards
from pipeline.config import LabelConfig
from pipeline.evaluate.evaluate import evaluate_source
from pipeline.operators.model_ref import read_calibration
from pipeline.relabel.job import relabel
from pipeline.session.connect import connect
from serve.config import ServeConfig, plan_replica
from serve.model.engine import Engine
from serve.model.outcomes import Labelled
from serve.model.settled import settle
from tests.support.calibrations import write_calibration
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

# Red is accepted from a score on that its images have, green never, blue by the pooled threshold, which it does not reach.
THRESHOLDS = {"temperature": 4.0, "pooled": 0.9, "classes": {0: 0.5, 1: None}}
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Bulk:
    """A run with a calibration: what it read, its calibration, and what it wrote."""

    source: Path
    file: Path
    dest: Path

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables([pq.read_table(path) for path in sorted(self.dest.glob("*.parquet"))])


@pytest.fixture(scope="module")
def bulk(tmp_path_factory, tiny_model, ray_ends) -> Bulk:
    connect(None)
    folder = tmp_path_factory.mktemp("calibrated")
    found = Bulk(folder / "in", folder / "c.json", folder / "out")
    colour_shards(found.source, shards=2, samples=40)
    write_tar(found.source / "z.tar", {"a.jpg": b"no image", "b.png": colour_jpeg("blue"), "c.jpg": b""})
    write_calibration(found.file, tiny_model, **THRESHOLDS)
    label(found.source, found.dest, tiny_model, calibration=found.file)
    return found


def test_scores_are_calibrated_and_labels_are_those_without(tmp_path, tiny_model, bulk):
    label_without_ray(bulk.source, tmp_path / "plain", tiny_model)

    calibrated, plain = bulk.table, pq.read_table(tmp_path / "plain")
    assert calibrated.column_names == [*plain.column_names, "accepted"]
    same = [name for name in plain.column_names if name not in ("score", "top_scores")]
    assert calibrated.select(same).to_pylist() == plain.select(same).to_pylist()
    rows = calibrated.to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    assert {row["accepted"] for row in rows if row["status"] != "ok"} == {None}
    assert {(row["label"], row["accepted"]) for row in ok} == {("red", True), ("green", False), ("blue", False)}
    assert max(row["score"] for row in ok) < 0.9 < min(row["score"] for row in plain.to_pylist() if row["score"])
    metadata = pq.ParquetFile(bulk.dest / "part-00000.parquet").schema_arrow.metadata
    assert metadata[b"shardlabel.calibration_sha256"].decode() == parse_calibration(bulk.file.read_bytes(), "").sha256
    assert metadata[b"shardlabel.temperature"] == b"4.0"
    assert b"shardlabel.temperature" not in pq.ParquetFile(tmp_path / "plain" / "part-00000.parquet").metadata.metadata


def test_the_shape_for_gpus_writes_the_same_bytes(tmp_path, tiny_model, bulk):
    options = {"shape": "two-stage", "actors": "1", "preprocess_cpus": 1}

    label(bulk.source, tmp_path / "two", tiny_model, calibration=str(bulk.file), **options)

    assert parts(tmp_path / "two") == parts(bulk.dest)


def test_a_dest_goes_on_with_its_calibration_only(tmp_path, tiny_model, bulk):
    before = parts(bulk.dest)

    assert label(bulk.source, bulk.dest, tiny_model, calibration=bulk.file).status == "done"
    other = write_calibration(tmp_path / "other.json", tiny_model, temperature=1.5)
    for wrong in (None, other):
        with pytest.raises(ConfigError, match=r"was begun with calibration [0-9a-f]{64}, and now it is"):
            label(bulk.source, bulk.dest, tiny_model, calibration=wrong)
    assert parts(bulk.dest) == before


def test_what_cannot_be_used_is_told_before_anything_is_written(tmp_path, tiny_model, bulk):
    (tmp_path / "text.json").write_text("hello")
    for_int8 = write_calibration(tmp_path / "int8.json", "efficientnet-lite0", precision=Precision.INT8)
    cases = [
        (tmp_path / "none.json", {}, "there is no such file"),
        (tmp_path, {}, "there is no such file"),
        (tmp_path / "text.json", {}, "it is not JSON"),
        (for_int8, {}, "was fitted for model efficientnet-lite0, but this run uses model tiny"),
        (bulk.file, {"decode": "exact"}, "was fitted for decode mode fast"),
        (bulk.file, {"device": "simulated:100"}, "a simulated device makes up its scores"),
    ]
    for file, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            label(bulk.source, tmp_path / "out", tiny_model, calibration=file, **options)

    assert not (tmp_path / "out").exists()


def test_python_gives_what_the_command_writes(tiny_model, bulk):
    dataset = label_dataset(read_shards(str(bulk.source)), model=str(tiny_model), top_k=3, calibration=bulk.file)
    found = pa.concat_tables([ray.get(block) for block in dataset.to_arrow_refs()])

    written = bulk.table
    assert [name for name in found.column_names if name != "bytes"] == written.column_names
    columns = ["shard", "key", "label_id", "score", "top_scores", "accepted"]
    assert sorted(map(str, found.select(columns).to_pylist())) == sorted(map(str, written.select(columns).to_pylist()))


def ask_online(model: str, precision: Precision, file: Path, images: list[bytes], *, top_k: int) -> list[Labelled]:
    """Return what the endpoint's engine answers."""
    config = ServeConfig(model=model, precision=precision.value, calibration=str(file))
    engine = Engine(settle(model, config, has_gpu=False), config, plan_replica(config, on_gpu=False, cpus=1))

    async def ask():
        try:
            return await engine.label(images, top_k=top_k, deadline=time.monotonic() + 60, probabilities=True)
        finally:
            engine.close()

    return asyncio.run(ask())


def test_online_answers_what_bulk_writes(tiny_model, bulk):
    images = [colour_jpeg(name) for name in COLOURS]

    answers = ask_online(str(tiny_model), Precision.FP32, bulk.file, images, top_k=3)

    for found, row in zip(answers, bulk.table.to_pylist(), strict=False):
        assert found.label_ids.tolist() == row["top_ids"]
        np.testing.assert_array_equal(found.scores, np.float32(row["top_scores"]))
        np.testing.assert_array_equal(found.probabilities[found.label_ids], found.scores)
        assert found.accepted is row["accepted"]


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_calibration_may_lie_in_an_object_store(place, bulk):
    place.put("c.json", bulk.file.read_bytes())

    assert read_calibration(f"{place.uri}/c.json") == parse_calibration(bulk.file.read_bytes(), "")
    with pytest.raises(ConfigError, match=r"none\.json: there is no such file"):
        read_calibration(f"{place.uri}/none.json")


@pytest.mark.data
def test_a_calibration_of_half_the_samples_holds_on_the_other_in_bulk_and_online(sample_data, tmp_path):
    shard, file = sorted(sample_data.glob("*.tar"))[0], tmp_path / "c.json"
    model, precision = "efficientnet-lite0", Precision.INT8
    wanted = LabelConfig(source=str(shard), model=model, precision=precision, device=Device.CPU, output="none")

    fit = evaluate_source(wanted, lambda _: None, precision=80.0).fit
    file.write_text(fit.calibration.to_text())
    label(shard, tmp_path / "out", model, precision=precision, calibration=file, top_k=5)

    judged = fit.calibration.judged
    assert (fit.calibration.fitted_on, judged.images) == (50, 50)
    assert judged.error_after < judged.error_before
    assert judged.log_loss_after < judged.log_loss_before
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    with tarfile.open(shard) as tar:
        images = {m.name.partition(".")[0]: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}
    answers = ask_online(model, precision, file, list(images.values())[:32], top_k=5)
    for key, found in zip(images, answers, strict=False):
        assert found.label_ids.tolist() == rows[key]["top_ids"]
        np.testing.assert_allclose(found.scores, rows[key]["top_scores"], atol=1e-5)
        assert found.accepted is rows[key]["accepted"]
    accepted = evaluate_source(wanted.model_copy(update={"calibration": str(file)}), lambda _: None).accepted
    assert accepted.coverage == sum(row["accepted"] for row in rows.values()) > judged.accepted > 0


def test_rows_are_relabelled_with_the_calibration_of_old_and_not_without(tmp_path, tiny_model, bulk):
    options = {"output": str(tmp_path / "new"), "model": str(tiny_model), "progress": "none"}
    with pytest.raises(ConfigError, match=r"same calibration.*--calibration"):
        relabel(str(bulk.dest), options, "label = 'red'")

    report = relabel(str(bulk.dest), {**options, "calibration": str(bulk.file)}, "label = 'red'")

    new = pq.read_table(tmp_path / "new").drop_columns(["model"])
    assert (report.status, report.relabelled_now > 0) == ("done", True)
    assert new.to_pylist() == bulk.table.to_pylist()


def test_a_calibration_of_another_number_of_classes_is_refused(tmp_path, tiny_model, bulk):
    values = json.loads(bulk.file.read_text())
    (tmp_path / "c.json").write_text(json.dumps({**values, "num_classes": 1000}))

    with pytest.raises(ConfigError, match="is for 1000 classes, but tiny has 3"):
        label(bulk.source, tmp_path / "out", tiny_model, calibration=tmp_path / "c.json")
