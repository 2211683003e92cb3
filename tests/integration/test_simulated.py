"""The two-stage shape with a GPU that only takes the time."""

from __future__ import annotations

import os
import uuid

import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError, DeviceLostError
from pipeline.operators import dataset, watch
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


def test_both_shapes_write_the_same_bytes_and_no_real_run_resumes_them(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3, samples=40)
    write_tar(tmp_path / "in" / "z.tar", {"a.jpg": b"no image", "b.png": colour_jpeg("blue"), "c.jpg": b""})

    report = label(tmp_path / "in", tmp_path / "two", tiny_model, device="simulated:10000")
    label(tmp_path / "in", tmp_path / "fused", tiny_model, device="simulated:10000", shape="fused")

    assert (report.images, report.ok, report.precision) == (123, 121, "simulated")
    assert parts(tmp_path / "two") == parts(tmp_path / "fused")
    metadata = pq.ParquetFile(tmp_path / "two" / "part-00000.parquet").schema_arrow.metadata
    assert metadata[b"shardlabel.precision"] == b"simulated"
    with pytest.raises(ConfigError, match="begun with precision simulated, and now it is fp32"):
        label(tmp_path / "in", tmp_path / "two", tiny_model)


def test_the_gpu_takes_the_time_that_its_rate_says(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=50)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50")

    assert report.seconds > 100 / 50


def test_a_gpu_that_idles_is_told_in_the_runs_log_with_what_starves_it(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(watch, "WATCH_EVERY_S", 0.25)
    colour_shards(tmp_path / "in", shards=20, samples=500)

    label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:1000000", progress="plain")

    said = [line for line in capsys.readouterr().err.splitlines() if "warning: the GPUs are busy" in line]
    assert len(said) == 1
    assert "decoders' time: reading" in said[0]


def test_embeddings_of_a_simulated_gpu_are_refused(tmp_path, tiny_model):
    with pytest.raises(ConfigError, match="a simulated device gives no embeddings"):
        label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50", embeddings=True)


def test_a_lost_gpu_costs_its_actor_and_no_image(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=6, samples=50)
    label(tmp_path / "in", tmp_path / "whole", tiny_model, device="simulated:10000", shape="fused")
    marks = tmp_path / "marks"
    marks.mkdir()

    # Not at the module's level: Ray's workers do not import the tests, and what is here travels whole.
    class LosesItsGpu(dataset.Label):
        def __init__(self, model, columns, isolate) -> None:
            super().__init__(model, columns, isolate)
            labeller = None if isolate else self._label._labeller._labeller
            if labeller is not None:
                labeller.predict = self.fail_once(labeller.predict)

        @staticmethod
        def fail_once(predict):
            def fail(images, **options):
                if not any(marks.iterdir()):
                    (marks / uuid.uuid4().hex).touch()
                    raise DeviceLostError("CUDA failure 700: an illegal memory access was encountered")
                return predict(images, **options)

            return fail

    monkeypatch.setattr(dataset, "Label", LosesItsGpu)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:10000")

    assert report.status == "done"
    assert len(list(marks.iterdir())) == 1
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


@pytest.mark.long
def test_a_gpu_that_is_lost_again_and_again_fails_the_run_and_does_not_hang_it(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=2, samples=50)

    class AlwaysLost(dataset.Label):
        def __call__(self, table):
            os._exit(76)

    monkeypatch.setattr(dataset, "Label", AlwaysLost)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:10000")

    assert (report.status, report.failed_units) == ("failed", 2)
    assert all("4 processes died while they labelled it" in why for why in report.failed.values())


@pytest.mark.long
def test_of_a_unit_that_fails_in_a_batch_with_others_the_others_are_done(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=6, samples=20)
    label(tmp_path / "in", tmp_path / "whole", tiny_model, device="simulated:10000", shape="fused")

    class Faulty(dataset.Label):
        def __init__(self, model, columns, isolate) -> None:
            super().__init__(model, columns, isolate)
            right = self._label

            def fail(table):
                of_two = [unit.as_py() == 2 for unit in table["_unit"]]
                if "ok" in table.filter(of_two)["status"].to_pylist():
                    raise ZeroDivisionError("nobody thought of this")
                return right(table)

            self._label = fail

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "Label", Faulty)
        report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:10000")

    assert (report.status, report.units_done) == ("failed", 5)
    assert report.failed == {"unit 2 (shard-002.tar)": "unexpected ZeroDivisionError: nobody thought of this"}
    again = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:10000")
    assert (again.status, again.units_now) == ("done", 1)
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")
