"""Labels over time: shards are added to a DEST that is killed, shared and full, and what was there stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from models.errors import StorageError
from pipeline.config import LabelConfig
from pipeline.dest.lease import Lease
from pipeline.dest.plan import cut_units, extend_plan, iter_units, read_plan, write_plan
from pipeline.dest.verify import verify_dest
from pipeline.dry_run import dry_run
from pipeline.operators import dataset
from pipeline.report.findings import gather
from pipeline.sources.unit import Slice
from pipeline.storage.storage import open_storage
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label, parts
from tests.support.s3_place import Place
from tests.support.tiny_model import colour_shards, write_tar

SAMPLES = 40


def put(folder: Path, count: int, *, first: int = 0, samples: int = SAMPLES) -> None:
    """Put shards into folder/in, of those that a feed brings one after the other."""
    made = colour_shards(folder / "made", shards=first + count, samples=samples)
    (folder / "in").mkdir(exist_ok=True)
    for path in made[first:]:
        path.rename(folder / "in" / path.name)
    shutil.rmtree(folder / "made")


def words(source: Path | str, dest: Path | str, model: Path, *more: str) -> list[str]:
    settings = ["label", source, "--output", dest, "--model", model, "--top-k", "3", "--json", *more]
    return [sys.executable, "-m", "cluster.cli", *map(str, settings)]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(claim: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not claim():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def keys(folder: Path) -> list[tuple[str, str]]:
    table = pq.read_table(folder, columns=["shard", "key"]).to_pydict()
    return sorted(zip(table["shard"], table["key"], strict=True))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files of DEST but those that say who holds it, with the times of their last writes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("lock", "lease.json"))
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_feed_is_labelled_as_it_comes_and_what_was_there_stays_as_it_was(tmp_path, tiny_model):
    source, dest = tmp_path / "in", tmp_path / "out"
    put(tmp_path, 2, first=3)
    assert label(source, dest, tiny_model, append=True).new_units == 2
    for day in range(1, 3):
        before = parts(dest)
        put(tmp_path, 1, first=day)  # sorts before all that is planned

        report = label(source, dest, tiny_model, append=True)

        assert (report.status, report.new_units, report.units_now, report.units) == ("done", 1, 1, day + 2)
        after = parts(dest)
        assert {name: after[name] for name in before} == before
        assert [*after] == [f"part-{unit:05d}.parquet" for unit in range(day + 2)]
    put(tmp_path, 1, first=5)
    estimate = dry_run(LabelConfig(source=str(source), output=str(dest), model=str(tiny_model), top_k=3, append=True,
                                   progress="none"), 20)  # fmt: skip
    assert (estimate.units, estimate.input_bytes) == (1, (source / "shard-005.tar").stat().st_size)
    label(source, dest, tiny_model, append=True)

    assert len(set(keys(dest))) == len(keys(dest)) == 5 * SAMPLES
    label_without_ray(source, tmp_path / "once", tiny_model)
    assert keys(tmp_path / "once") == keys(dest)
    found = verify_dest(open_storage(str(dest)))
    assert (found.ok, found.units, found.faults) == (True, 5, [])
    assert gather(open_storage(str(dest))).sentence().startswith(f"{5 * SAMPLES} images")
    before = files(dest)
    again = label(source, dest, tiny_model, append=True)
    assert again.sentences().startswith(f"nothing new in SOURCE: all 5 units of {dest} are finished")
    assert files(dest) == before


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_shard_that_went_before_it_was_labelled_fails_alone_and_is_named(tmp_path, tiny_model, monkeypatch):
    source, dest = tmp_path / "in", tmp_path / "out"
    put(tmp_path, 1)
    label_without_ray(source, dest, tiny_model)
    put(tmp_path, 1, first=1)
    with monkeypatch.context() as patch:  # a run that dies once it has planned
        patch.setattr("pipeline.job.label_pending", lambda *_: None)
        label(source, dest, tiny_model, append=True)
    for path in source.iterdir():
        path.unlink()
    put(tmp_path, 2, first=2)
    label_units = dataset.label_units

    def last_fails(*args: Any) -> Iterator[dataset.Result]:
        for result in label_units(*args):
            yield result if result.unit != 3 else dataset.Result(3, None, "nobody thought of this")

    monkeypatch.setattr(dataset, "label_units", last_fails)
    monkeypatch.setattr("pipeline.job.MAX_FAILED_UNITS", 2)  # those that were lost before do not count

    report = label(source, dest, tiny_model, append=True, missing_ok=True)

    assert (report.status, report.complete, report.units_done, report.units_now) == ("failed", False, 2, 1)
    assert report.failed["unit 1 (shard-001.tar)"] == "it was never labelled, and its shard is gone"
    assert report.failure == "2 of 4 units failed"
    assert {shard for shard, _ in keys(dest)} == {"shard-000.tar", "shard-002.tar", "shard-003.tar"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_an_append_that_was_killed_is_finished_by_the_same_command_without_it(tmp_path, tiny_model):
    source, dest = tmp_path / "in", tmp_path / "out"
    put(tmp_path, 2)
    label_without_ray(source, dest, tiny_model)
    before = parts(dest)
    put(tmp_path, 20, first=2, samples=200)
    with started(words(source, dest, tiny_model, "--append", "--actors", "1")) as process:
        wait_until(lambda: len(parts(dest)) > 3, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(parts(dest)) < 22

    report = label(source, dest, tiny_model)

    assert (report.status, report.units, report.new_units) == ("done", 22, None)
    after = parts(dest)
    assert {name: after[name] for name in before} == before
    assert len(set(keys(dest))) == len(keys(dest)) == 2 * SAMPLES + 20 * 200
    label_without_ray(source, tmp_path / "once", tiny_model)
    assert after == parts(tmp_path / "once")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_an_append_waits_for_another_and_adds_what_came_meanwhile(tmp_path, tiny_model, capsys):
    source, dest = tmp_path / "in", tmp_path / "out"
    put(tmp_path, 12, samples=300)
    with started(words(source, dest, tiny_model, "--append")) as process:
        wait_until(lambda: (dest / "_shardlabel/plan/plan.json").exists(), process)
        put(tmp_path, 1, first=12)

        report = label(source, dest, tiny_model, append=True, progress="plain")

        assert process.wait() == 0
    assert (report.status, report.new_units, report.units) == ("done", 1, 13)
    assert f"another run is writing to {dest} (process {process.pid} on" in capsys.readouterr().err
    assert len(set(keys(dest))) == len(keys(dest)) == 12 * 300 + SAMPLES


def test_ctrl_c_ends_the_wait_for_another_run_and_other_runs_are_refused_as_ever(tmp_path, tiny_model):
    source, dest = tmp_path / "in", tmp_path / "out"
    put(tmp_path, 1)
    with Lease(open_storage(str(dest))), started(words(source, dest, tiny_model, "--append")) as process:
        refused = subprocess.run(words(source, dest, tiny_model), capture_output=True, text=True, check=False)
        assert "waiting for it to end" in process.stderr.readline()

        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=30) == 130
    assert refused.returncode == 2
    assert f"another run is writing to {dest} (process {os.getpid()} on" in refused.stderr
    assert not (dest / "_shardlabel/plan").exists()


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_lease_in_a_store_is_waited_for_and_taken_once_it_is_given_back(place: Place, monkeypatch):
    monkeypatch.setattr("pipeline.dest.lease.BEAT_S", 0.2)
    told: list[str] = []
    with ExitStack() as first:
        held = first.enter_context(Lease(place.storage))

        def wait(text: str) -> None:
            told.append(text)
            first.close()

        with Lease(place.storage, wait) as second:
            second.check()
            assert second.token != held.token

    assert [
        text.endswith(f"(process {os.getpid()} on {socket.gethostname()}); waiting for it to end") for text in told
    ] == [True]


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_plan_in_a_store_grows_only_from_what_it_was(place: Place):
    def units(name: str, first: int) -> Iterator:
        return cut_units([Slice(f"{name}.tar", 9, "")], first=first)

    write_plan(place.storage, units("a", 0), {})
    stale, ours = read_plan(place.storage), read_plan(place.storage)

    ours = extend_plan(place.storage, ours, units("b", 1))
    with pytest.raises(StorageError, match="another run has just written it"):
        extend_plan(place.storage, stale, units("c", 1))

    assert read_plan(place.storage) == ours
    assert [unit.slices[0].shard for unit in iter_units(place.storage, ours)] == ["a.tar", "b.tar"]


# On a disk it is above; that a store's plan grows, and that the lease of the dead is free, have tests of their own.
@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_an_append_in_a_store_that_was_killed_is_finished_by_the_next(place: Place, tiny_model, tmp_path):
    def send(count: int, first: int, samples: int) -> None:
        put(tmp_path, count, first=first, samples=samples)
        for path in (tmp_path / "in").iterdir():
            place.put(f"in/{path.name}", path.read_bytes())

    def outputs() -> dict[str, bytes]:
        names = [file.path for file in place.storage.list("out") if file.path.endswith(".parquet")]
        return {name: place.storage.read_bytes(name) for name in names}

    command = words(f"{place.uri}/in/*.tar", f"{place.uri}/out", tiny_model)
    send(1, 0, SAMPLES)
    label_without_ray(f"{place.uri}/in/*.tar", f"{place.uri}/out", tiny_model)
    before = outputs()
    send(20, 1, 300)
    with started([*command, "--append"]) as process:
        wait_until(lambda: len(outputs()) > 2, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(outputs()) < 21

    done = subprocess.run([*command, "--append"], capture_output=True, text=True, check=True, timeout=240)

    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["status"], summary["new_units"], summary["images"]) == ("done", 0, SAMPLES + 20 * 300)
    assert before.items() <= outputs().items()
    assert verify_dest(open_storage(f"{place.uri}/out")).ok


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_run_whose_error_budget_cannot_be_met_stops_early_with_exit_3_and_can_be_resumed(tmp_path, tiny_model):
    source, dest = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for shard in range(40):
        write_tar(source / f"{shard:02d}.tar", {f"{i}.jpg": b"no image" for i in range(150)})

    done = subprocess.run(
        words(source, dest, tiny_model, "--max-error-rate", "0.1", "--actors", "1"),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert done.returncode == 3, done.stderr
    assert "could not be labelled, more than --max-error-rate 0.1 even allowing for chance" in done.stdout
    summary = json.loads((dest / "_shardlabel/summary.json").read_text())
    assert (summary["status"], summary["complete"]) == ("stopped", False)
    assert 1000 <= summary["images"] < 6000
    rest = label(source, dest, tiny_model, actors="1")
    assert (rest.status, rest.complete, rest.images) == ("done", True, 6000)
    assert rest.images_now == 6000 - summary["images"]
