"""A run survives what happens to its workers, its model and its caller."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.operators import dataset
from pipeline.session.connect import connect
from tests.support.hostile_models import ON_WHITE
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

# Batches of the tiny model take a millisecond.
TIMEOUT_S = 3.0


# What a caller does in a process of its own.
CALLER = """
import os, signal, sys, threading
from pathlib import Path
from models.errors import ClusterError
from pipeline import LabelConfig, run
from tests.support.chaos import victims
source, output, model = sys.argv[1:4]
def kill():
    while not list(Path(output).glob("part-*")):
        threading.Event().wait(0.05)
    os.kill(victims(os.getpid(), "gcs")[0], signal.SIGKILL)
if sys.argv[4] == "dies":
    threading.Thread(target=kill, daemon=True).start()
try:
    status = run(LabelConfig(source=source, output=output, model=model, top_k=3, progress="none")).status
except ClusterError as err:
    status = "failed"
print("the caller goes on:", status, flush=True)
"""


def white_png(side: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (255, 255, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(folder: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(folder).to_pylist()}


def counting_actors(marks: Path) -> type:
    """Return actors that leave a mark at each start: the processes of a run can be counted then."""
    marks.mkdir()

    # Not at the module's level: Ray's workers do not import the tests, and what is here travels whole.
    class Counted(dataset.LabelUnits):
        def __init__(self, *arguments) -> None:
            (marks / uuid.uuid4().hex).touch()
            super().__init__(*arguments)

    return Counted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a-loop-that-never-ends", "a-gather-beyond-the-end"])
def test_an_image_that_hangs_or_fails_the_model_is_a_row_and_the_job_goes_on(tmp_path, name):
    model = ON_WHITE[name](tmp_path)
    colour_shards(tmp_path / "in", shards=3, samples=5)
    white = (7, 8)
    good = {f"{i}.jpg": colour_jpeg("green") for i in range(20) if i not in white}
    write_tar(tmp_path / "in" / "shard-001.tar", {**good, **{f"{i}.png": white_png(33) for i in white}})

    report = label(tmp_path / "in", tmp_path / "out", model, image_timeout_s=TIMEOUT_S)

    assert (report.status, report.failure) == ("done", None)
    assert report.errors == {"unsupported": 2}
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 10 + 20
    for row in (rows.pop(str(i)) for i in white):
        assert (row["status"], row["label"], row["width"], row["height"]) == ("unsupported", None, 33, 33)
        assert "the model" in row["error"]
    assert {row["label"] for key, row in rows.items() if len(key) < 3} == {"green"}
    assert Counter(row["status"] for row in rows.values()) == {"ok": 28}


@pytest.mark.long
def test_a_ctrl_c_while_the_model_hangs_ends_the_run_as_any_other_does(tmp_path):
    model = ON_WHITE["a-loop-that-never-ends"](tmp_path)
    colour_shards(tmp_path / "in", shards=6, samples=5)
    write_tar(tmp_path / "in" / "shard-001.tar", {"a.png": white_png()})
    words = ["label", tmp_path / "in", "--output", tmp_path / "out", "--model", model, "--top-k", "3", "--actors", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *map(str, words), "--image-timeout-s", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "out" / "part-00000.parquet").exists():
        assert process.poll() is None
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 130, out + err
    assert "the same command does the rest" in out


@pytest.mark.long
def test_poison_images_in_one_task_cost_one_process_of_the_pool(tmp_path, monkeypatch):
    model = ON_WHITE["a-loop-that-never-ends"](tmp_path)
    # With one actor units go alone at first; 2 to 5 are one task then.
    colour_shards(tmp_path / "in", shards=18, samples=2)
    for poisoned in (2, 3, 4):
        write_tar(tmp_path / "in" / f"shard-{poisoned:03d}.tar", {f"white-{poisoned}.png": white_png()})
    monkeypatch.setattr(dataset, "LabelUnits", counting_actors(tmp_path / "marks"))

    report = label(tmp_path / "in", tmp_path / "out", model, image_timeout_s=TIMEOUT_S, actors="1")

    assert (report.status, report.errors) == ("done", {"unsupported": 3})
    # The first, the one in place of it, and the one that does again what the first had.
    assert len(list((tmp_path / "marks").iterdir())) == 3


def test_a_unit_that_fails_unexpectedly_fails_alone_and_is_done_by_the_next_run(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=12, samples=5)
    label_without_ray(tmp_path / "in", tmp_path / "whole", tiny_model)
    tries = tmp_path / "tries"
    tries.mkdir()

    class Faulty(dataset.LabelUnits):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            right = self._label

            def label_or_fail(batches):
                for batch, predictions in right(batches):
                    if batch.rows[0].shard in ("shard-004.tar", "shard-009.tar"):
                        (tries / f"{batch.rows[0].shard}-{uuid.uuid4().hex}").touch()
                        raise ZeroDivisionError("nobody thought of this")
                    yield batch, predictions

            self._label = label_or_fail
            self._label_isolated = label_or_fail

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "LabelUnits", Faulty)
        report = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert (report.status, report.units_done, report.failed_units) == ("failed", 10, 2)
    assert set(report.failed) == {"unit 4 (shard-004.tar)", "unit 9 (shard-009.tar)"}
    assert all("ZeroDivisionError: nobody thought of this" in why for why in report.failed.values())
    assert "2 of 12 units failed" in report.failure
    for name in report.failed:
        assert name in report.sentences()
    assert json.loads((tmp_path / "out" / "_shardlabel" / "summary.json").read_text())["failed"] == report.failed
    assert Counter(mark.name[:13] for mark in tries.iterdir()) == {"shard-004.tar": 4, "shard-009.tar": 4}

    again = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert (again.status, again.units_now, again.failed_units) == ("done", 2, 0)
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def test_a_fault_of_every_unit_stops_the_run_before_it_has_tried_them_all(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=1200, samples=1)

    class Faulty(dataset.LabelUnits):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)

            def fail(batches):
                raise ZeroDivisionError("nobody thought of this")

            self._label = self._label_isolated = fail

    monkeypatch.setattr(dataset, "LabelUnits", Faulty)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert report.status == "failed"
    assert 100 <= report.failed_units < 1200
    assert len(report.failed) == 100


def is_free_again() -> bool:
    """Tell whether all CPUs of the caller's Ray are free, at once or soon."""
    import ray

    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost_with_its_node", "status"), [pytest.param(True, "done", marks=pytest.mark.long), (False, "failed")]
)
def test_the_loss_of_a_node_is_no_attempt_and_the_death_of_a_process_is(
    tmp_path, tiny_model, monkeypatch, lost_with_its_node, status
):
    colour_shards(tmp_path / "in", shards=4, samples=5)
    marks = tmp_path / "marks"
    marks.mkdir()

    class Lost(dataset.LabelUnits):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            right = self._label

            def label_or_die(batches):
                for batch, predictions in right(batches):
                    if batch.rows[0].shard == "shard-001.tar" and len(list(marks.iterdir())) < 5:
                        (marks / uuid.uuid4().hex).touch()
                        os._exit(1)
                    yield batch, predictions

            self._label = self._label_isolated = label_or_die

    monkeypatch.setattr(dataset, "LabelUnits", Lost)
    if lost_with_its_node:
        # Each look finds another node than the one before.
        monkeypatch.setattr(dataset, "alive_nodes", lambda: {uuid.uuid4().hex})

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, actors="1")

    assert report.status == status
    assert is_free_again()
    if not lost_with_its_node:
        assert list(report.failed) == ["unit 1 (shard-001.tar)"]
        assert "4 processes died while they labelled it" in report.failed["unit 1 (shard-001.tar)"]
        assert report.units_done == 3


@pytest.mark.long
def test_an_image_that_hangs_the_model_is_a_row_in_the_two_stage_shape_too(tmp_path):
    model = ON_WHITE["a-loop-that-never-ends"](tmp_path)
    colour_shards(tmp_path / "in", shards=3, samples=5)
    write_tar(tmp_path / "in" / "shard-001.tar", {"a.png": white_png(), "b.jpg": colour_jpeg("green")})

    report = label(tmp_path / "in", tmp_path / "out", model, image_timeout_s=TIMEOUT_S, shape="two-stage", actors="1")

    assert (report.status, report.errors) == ("done", {"unsupported": 1})
    rows = rows_of(tmp_path / "out")
    assert "the model" in rows["a"]["error"]
    assert rows["b"]["label"] == "green"


def test_of_actors_that_may_be_one_to_three_a_little_work_starts_one(tmp_path, tiny_model, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()

    class Counted(dataset.Label):
        def __init__(self, *arguments) -> None:
            (marks / uuid.uuid4().hex).touch()
            super().__init__(*arguments)

    monkeypatch.setattr(dataset, "Label", Counted)
    colour_shards(tmp_path / "in", shards=1, samples=5)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:10000", actors="1:3")

    assert report.status == "done"
    assert len(list(marks.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dies", "never comes up"])
def test_a_caller_lives_on_where_its_local_ray_does_not(tmp_path, tiny_model, monkeypatch, what):
    colour_shards(tmp_path / "in", shards=40, samples=300)
    if what != "dies":
        monkeypatch.setenv("SHARDLABEL_RAY_START_S", "0.1")
    words = [sys.executable, "-c", CALLER, str(tmp_path / "in"), str(tmp_path / "out"), str(tiny_model), what]

    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)

    assert done.stdout.splitlines()[-1:] == ["the caller goes on: failed"], done.stderr
    assert "Ray" in done.stderr


def test_a_run_leaves_its_caller_as_it_was(tmp_path, tiny_model, monkeypatch):
    import ray

    ray.shutdown()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("RAY_DATA_DISABLE_PROGRESS_BARS", raising=False)
    colour_shards(tmp_path / "in", shards=2, samples=5)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP]
    handlers, environment = [signal.getsignal(number) for number in numbers], dict(os.environ)

    from_here = label(tmp_path / "in", tmp_path / "here", tiny_model)

    assert [signal.getsignal(number) for number in numbers] == handlers
    assert dict(os.environ) == environment
    assert not ray.is_initialized()
    with ThreadPoolExecutor(1) as pool:
        from_thread = pool.submit(label, tmp_path / "in", tmp_path / "thread", tiny_model).result()
    assert from_here.status == from_thread.status == "done"
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert dict(os.environ) == environment
    connect(None)
    assert parts(tmp_path / "here") == parts(tmp_path / "thread")


def test_a_run_that_fails_leaves_nothing_in_the_cluster(tmp_path, tiny_model, monkeypatch):
    from ray.experimental import internal_kv

    class Unfit(dataset.LabelUnits):
        def __init__(self, *arguments) -> None:
            raise RuntimeError("cannot start")

    run_id = uuid.uuid4()
    monkeypatch.setattr("pipeline.job.uuid", SimpleNamespace(uuid4=lambda: run_id))
    monkeypatch.setattr(dataset, "LabelUnits", Unfit)
    colour_shards(tmp_path / "in", shards=2, samples=5)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert report.status == "failed"
    assert internal_kv._internal_kv_list(b"", namespace=f"shardlabel-{run_id.hex}") == []
