"""DEST on a real S3 server: what it holds is never SOURCE's under another name, and one run at a time writes to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from models.errors import SourceError, StorageError
from pipeline.config import LabelConfig
from pipeline.dest.lease import BEAT_S, LEASE_FILE, Lease
from pipeline.dest.plan import cut_units, write_plan
from pipeline.dest.resume import prepare
from pipeline.dest.verify import verify_dest
from pipeline.sources.reader import slices
from pipeline.sources.source import open_source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import open_storage
from tests.support.s3_place import Place
from tests.support.s3_server import Call, FaultProxy, S3Server
from tests.support.shard_factory import images, tar_bytes


def overwrite(source: str, dest: str) -> None:
    """Do what a run with --overwrite does before it labels."""
    config = LabelConfig(source=source, output=dest, overwrite=True)
    storage = open_storage(dest)
    opened = open_source(config.source, config.format, exclude=storage)
    prepare(config, storage, {}, opened, lambda: slices(opened), lambda piece, most: most)


@pytest.fixture
def sourced(place: Place) -> Place:
    """A folder that holds a finished run, in whose place somebody put their own Parquet files."""
    write_plan(place.storage, cut_units([Slice(f"{i}.tar", 9, "") for i in range(2)]), {})
    for i in range(2):
        place.put(f"part-{i:05d}.parquet", b"the only copy")
    return place


@pytest.mark.parametrize("wildcard", ["/part-*.parquet", "/part-00001.parquet", ""])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_another_name_of_the_endpoint_does_not_make_dest_another_folder(store: S3Server, sourced, host, wildcard):
    other = f"{sourced.uri}?endpoint_override={host}:{store.port}&scheme=http"

    for source, dest in (
        (sourced.uri + wildcard, other),
        (f"{sourced.uri}{wildcard}?{other.partition('?')[2]}", sourced.uri),
    ):
        with pytest.raises(SourceError) as caught:
            overwrite(source, dest)
        assert "--overwrite" not in str(caught.value)
    assert [name for name in sourced.names() if name.startswith("part-")] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


# Where a run takes part: the other two take a minute more each.
KINDS = ["s3", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("gs", "az"))]
HOLD = """
import sys, pipeline.dest.lease as lease
from pipeline.storage.storage import open_storage
lease.BEAT_S, lease.DEAD_S = 0.2, 1.0
with lease.Lease(open_storage(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(place: Place) -> int | None:
    """Return the process that the lease names; None where there is no lease."""
    while True:
        try:
            return json.loads(place.storage.read_bytes(LEASE_FILE))["pid"]
        except ValueError:  # the server shows an object while it is replaced
            continue
        except StorageError:
            return None


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_driver_that_stalled_neither_takes_nor_ends_the_lease_of_its_successor(place, monkeypatch):
    monkeypatch.setattr("pipeline.dest.lease.BEAT_S", 0.2)
    monkeypatch.setattr("pipeline.dest.lease.DEAD_S", 1.0)
    command = [sys.executable, "-c", HOLD, place.uri]
    stalled = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert stalled.stdout.readline() == "held\n"
        stalled.send_signal(signal.SIGSTOP)
        holders = set()
        with Lease(place.storage):
            stalled.send_signal(signal.SIGCONT)
            until = time.monotonic() + 2  # ten beats
            while time.monotonic() < until:
                holders.add(holder(place))
                if len(holders) > 1 and stalled.poll() is None:
                    stalled.stdin.close()  # it ends, and takes the lease with it
        assert holders == {os.getpid()}
    finally:
        stalled.kill()
        stalled.wait()


def test_the_lease_of_a_process_of_this_machine_that_is_dead_is_free_at_once(place):
    dead = subprocess.Popen([sys.executable, "-c", HOLD, place.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert dead.stdout.readline() == b"held\n"
    finally:
        dead.kill()
        dead.communicate()
    started = time.monotonic()

    with Lease(place.storage):
        assert time.monotonic() - started < BEAT_S

    assert json.loads(place.storage.read_bytes(LEASE_FILE))["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["s3", "gs", pytest.param("az", marks=pytest.mark.long)])
def test_two_runs_do_not_hold_one_lease_where_a_put_is_slow(place: Place, proxy: FaultProxy, monkeypatch):
    monkeypatch.setattr("pipeline.dest.lease.BEAT_S", 1.0)
    monkeypatch.setattr("pipeline.dest.lease.DEAD_S", 4.0)
    held = []
    done = threading.Barrier(2)

    def slow(call: Call) -> None:
        if call.method == "PUT" and call.path.endswith(LEASE_FILE):
            time.sleep((0.4, 1.2)[min(call.number, 1)])  # less than a beat, and more

    def take() -> None:
        with suppress(SourceError), Lease(place.storage):
            held.append(threading.current_thread().name)
            with suppress(threading.BrokenBarrierError):
                done.wait(30)
            return
        done.abort()

    proxy.rule = slow
    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(held) == 1


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_run_that_is_refused_leaves_no_lease_behind_where_there_was_none(place: Place):
    place.put("mine.parquet", b"the only copy")

    with pytest.raises(SourceError, match="refused"), Lease(place.storage):
        raise SourceError("refused")
    assert place.names() == ["mine.parquet"]

    with Lease(place.storage):
        pass
    with pytest.raises(SourceError, match="refused"), Lease(place.storage):
        raise SourceError("refused")
    assert json.loads(place.storage.read_bytes(LEASE_FILE))["is_released"]


def written(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes(name.encode())
    return path


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_part_that_was_under_way_as_the_lease_went_replaces_none_of_the_next_holder(place, tmp_path):
    storage, checks = place.storage, iter([None, StorageError("another run has taken it")])

    def check() -> None:
        if (answer := next(checks)) is not None:
            raise answer
        # Between this look at the lease and the PUT the next run takes DEST, and is done with the part.
        storage.publish(written(tmp_path, "next"), "part-00000.parquet")

    with pytest.raises(StorageError, match="another run has taken it"):
        storage.publish(written(tmp_path, "stalled"), "part-00000.parquet", check)

    assert storage.read_bytes("part-00000.parquet") == b"next"


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_a_part_of_a_run_that_lost_the_lease_is_replaced_by_the_next_holder(place, tmp_path):
    place.storage.publish(written(tmp_path, "stalled"), "part-00000.parquet")

    place.storage.publish(written(tmp_path, "next"), "part-00000.parquet")

    assert place.storage.read_bytes("part-00000.parquet") == b"next"


def label(place: Place, output: str, model: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "label", f"{place.uri}/in", "--output", f"{place.uri}/{output}",
               "--model", str(model), "--top-k", "3", "--progress", "none", *options]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def part_files(place: Place, output: str) -> dict[str, bytes]:
    folder = place.server.fetch(f"{place.name}/{output}")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [pytest.param(("--overwrite",), id="anew", marks=pytest.mark.long), pytest.param((), id="resumed")]
)
def test_a_driver_that_was_stopped_publishes_nothing_once_another_took_its_place(
    place: Place, proxy: FaultProxy, tiny_model: Path, options: tuple[str, ...]
) -> None:
    """Stopped with its units under way, replaced, and woken up: it fails, names the other, and DEST is the other's."""
    for number in range(24):
        place.put(f"in/{number:02d}.tar", tar_bytes(images(40)))
    first = label(place, "out", tiny_model)
    asked: list[str] = []
    try:
        while not [name for name in place.names() if name.startswith("out/part-")]:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGSTOP)
        second = label(place, "out", tiny_model, *options)
        said = second.communicate(timeout=200)[1]
        assert second.returncode == 0, said
        after = part_files(place, "out")
        proxy.forget()
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate(timeout=120)[1]
        asked = [f"{a.call.path}" for a in proxy.calls if a.call.method in ("PUT", "DELETE") and a.status == 200]
    finally:
        first.kill()
        first.wait()

    assert first.returncode == 1, said
    assert "another run" in said
    assert "Traceback" not in said
    assert not asked
    assert part_files(place, "out") == after
    assert len(after) == 24
    assert verify_dest(open_storage(place.uri + "/out")).ok
