"""The two-stage shape with a GPU that only takes the time."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError, DeviceLostError
from pipeline.job import RunReport
from pipeline.operators import model_pool
from pipeline.session.connect import connect
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    import ray

    connect(None)
    yield
    ray.shutdown()


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
    colour_shards(tmp_path / "in", shards=2, samples=100)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50")

    assert report.seconds > 200 / 50


def test_a_gpu_that_idles_is_told_in_the_runs_log_with_what_starves_it(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(model_pool, "WATCH_EVERY_S", 0.25)
    colour_shards(tmp_path / "in", shards=20, samples=500)

    label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:1000000", progress="plain")

    said = [line for line in capsys.readouterr().err.splitlines() if "warning: the GPUs are busy" in line]
    assert len(said) == 1
    assert "and wait for decoding (of the" in said[0] or "and wait for reading (of the" in said[0]


def test_embeddings_of_a_simulated_gpu_are_refused(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="embeddings cannot be had of a simulated device"):
        label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:50", embeddings=True)


def test_a_lost_gpu_costs_its_actor_and_no_image(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=6, samples=50)
    label(tmp_path / "in", tmp_path / "whole", tiny_model, device="simulated:10000", shape="fused")
    marks = tmp_path / "marks"
    marks.mkdir()

    report = run_with(faulty_pool(marks, times=2, after=1), tmp_path / "in", tmp_path / "out", tiny_model)

    assert report.status == "done"
    assert len(list(marks.iterdir())) == 2
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def test_a_gpu_that_is_lost_again_and_again_fails_the_run_and_does_not_hang_it(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=50)
    marks = tmp_path / "marks"
    marks.mkdir()

    report = run_with(faulty_pool(marks, times=10**6, after=0), tmp_path / "in", tmp_path / "out", tiny_model)

    assert report.status == "failed"
    assert "the actors that hold the model die or do not answer" in report.failure


def run_with(actor_class: type, source: Path, output: Path, model: Path) -> RunReport:
    """Label with other model actors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_pool, "ModelActor", actor_class)
        patch.setattr(model_pool, "MAX_RESTARTS", 3)
        return label(source, output, model, device="simulated:10000")


def faulty_pool(marks: Path, *, times: int, after: int) -> type:
    """Return model actors whose GPUs are lost, so many times in all, each after so many batches."""

    # Not at the module's level: Ray's workers do not import the tests, and what is here travels whole.
    class FaultyActor(model_pool.ModelActor):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            predict, batches = self._labeller.predict, itertools.count()

            def fail(images, **options):
                if next(batches) >= after and len(list(marks.iterdir())) < times:
                    (marks / uuid.uuid4().hex).touch()
                    raise DeviceLostError("CUDA failure 700: an illegal memory access was encountered")
                return predict(images, **options)

            self._labeller.predict = fail

    return FaultyActor
