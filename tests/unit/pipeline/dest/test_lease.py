from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from models.errors import DestHeldError, SourceError, StorageError
from pipeline.dest.lease import Lease, check_token
from pipeline.storage.storage import open_storage

HOLD = "import sys, time; from pipeline.dest.lease import Lease; from pipeline.storage.storage import open_storage\n"
HOLD += "with Lease(open_storage(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_second_run_is_refused_while_the_first_lives_and_let_in_once_it_is_killed(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"

        with (
            pytest.raises(SourceError, match=f"another run is writing.*process {first.pid} on"),
            Lease(open_storage(str(tmp_path))),
        ):
            pass
    finally:
        first.kill()
        first.communicate()
    started = time.perf_counter()

    with Lease(open_storage(str(tmp_path))):
        assert time.perf_counter() - started < 5


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out" / "_shardlabel").mkdir(parents=True)
    (tmp_path / "out" / "_shardlabel" / "lock").symlink_to(victim)

    with pytest.raises(SourceError, match="lock: it is a link"), Lease(open_storage(str(tmp_path / "out"))):
        pass

    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("call", "code", "why"),
    [
        pytest.param("pathlib.Path.write_text", errno.ENOSPC, "No space left on device", id="full"),
        pytest.param("fcntl.flock", errno.ENOSYS, "Function not implemented", id="a disk without locks"),
    ],
)
def test_a_lock_that_cannot_be_had_is_an_error_that_says_why(tmp_path, monkeypatch, call, code, why):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, fail)
    with pytest.raises(SourceError, match=f"lock: {why}"), Lease(open_storage(str(tmp_path))):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []

    with Lease(open_storage(str(tmp_path))):
        pass


@pytest.mark.parametrize("before", [(), ("data/out/",), ("data/out/mine.txt",), ("data/out/_shardlabel/reviews/1",)])
def test_a_run_that_is_refused_leaves_the_disk_as_it_was(tmp_path, before):
    for name in before:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True)
        if not name.endswith("/"):
            path.touch()
    found = sorted(tmp_path.rglob("*"))

    with pytest.raises(SourceError, match="refused"), Lease(open_storage(str(tmp_path / "data" / "out"))):
        raise SourceError("refused")

    assert sorted(tmp_path.rglob("*")) == found
    with Lease(open_storage(str(tmp_path / "data" / "out"))):
        pass
    assert (tmp_path / "data" / "out" / "_shardlabel" / "lock").exists()


def test_what_was_written_beside_the_lock_stays_though_the_run_fails(tmp_path):
    dest = open_storage(str(tmp_path / "out"))

    with suppress(StorageError), Lease(dest):
        dest.write_bytes("_shardlabel/plan/plan.json", b"{}")
        raise StorageError("the disk is full")

    assert [path.name for path in (tmp_path / "out" / "_shardlabel").iterdir() if path.is_file()] == []
    assert dest.read_bytes("_shardlabel/plan/plan.json") == b"{}"


def test_a_run_that_comes_while_another_is_refused_waits_or_is_refused_and_does_not_crash(tmp_path, monkeypatch):
    """The lock is gone, though not yet released, once a waiting run asks who holds it."""
    path = tmp_path / "_shardlabel" / "lock"
    with Lease(open_storage(str(tmp_path))):
        monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: path.with_name("gone").open())

        with (
            pytest.raises(DestHeldError, match=r"another run is writing to .*\(another process\)"),
            Lease(open_storage(str(tmp_path))),
        ):
            pass


def test_one_process_does_not_hold_a_dest_twice(tmp_path):
    with (
        Lease(open_storage(str(tmp_path))),
        pytest.raises(SourceError, match=f"another run is writing.*process {os.getpid()} on"),
        Lease(open_storage(str(tmp_path))),
    ):
        pass


def test_a_dest_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SourceError, match="file/dest"), Lease(open_storage(str(tmp_path / "file" / "dest"))):
        pass


def test_a_lease_that_cannot_be_read_does_not_pass_for_none(monkeypatch, tmp_path):
    dest = open_storage(str(tmp_path))
    dest.write_bytes("_shardlabel/lease.json", b"{}")

    def refuse(storage: object, name: str) -> bytes:
        raise StorageError("cannot read: ACCESS_DENIED") from OSError("ACCESS_DENIED")

    monkeypatch.setattr(type(dest), "read_version", refuse)

    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        check_token(dest, "mine")


def test_a_run_that_waits_says_for_whom_and_takes_over_when_it_ends(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    told: list[str] = []

    def kill(text: str) -> None:
        told.append(text)
        first.kill()

    try:
        assert first.stdout.readline() == "held\n"

        with Lease(open_storage(str(tmp_path)), kill) as lease:
            lease.check()
    finally:
        first.kill()
        first.communicate()

    (text,) = told
    assert text.startswith(f"another run is writing to {tmp_path} (process {first.pid} on ")
    assert text.endswith("; waiting for it to end")
