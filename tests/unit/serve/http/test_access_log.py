"""The access log on a disk that fills up, and under a name that is moved away."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest

from serve.http.access_log import AccessLog


@pytest.fixture
def full(monkeypatch):
    """A disk that takes nothing while the list holds something."""
    state, write = [True], os.write

    def maybe(fd, data):
        if state and data:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr("serve.http.access_log.os.write", maybe)
    return state


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_wait_while_the_disk_is_full(tmp_path, full):
    log = AccessLog(str(tmp_path / "log"))
    log.add(path="/a")
    time.sleep(0.6)
    log.add(path="/b")
    full.clear()
    log.close()

    assert [line["path"] for line in lines(tmp_path / "log")] == ["/a", "/b"]


def test_those_that_cannot_wait_are_counted(tmp_path, full, monkeypatch):
    monkeypatch.setattr("serve.http.access_log.MAX_WAITING", 10)
    log = AccessLog(str(tmp_path / "log"))
    log.add(path="/first")
    time.sleep(0.6)
    for n in range(25):
        log.add(path=f"/{n}")
    full.clear()
    log.close()

    *kept, last = lines(tmp_path / "log")
    assert last["lost"] + len(kept) == 26
    assert len(kept) <= 11
    assert kept[-1]["path"] == "/24"


def test_a_write_that_the_disk_cuts_short_is_finished_later(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("serve.http.access_log.os.write", lambda fd, data: write(fd, data[:7]))
    log = AccessLog(str(tmp_path / "log"))
    log.add(path="/a")
    log.close()

    assert [line["path"] for line in lines(tmp_path / "log")] == ["/a"]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(str(path))
    log.add(path="/a")
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    path.rename(tmp_path / "log.1")
    log.add(path="/b")
    log.close()

    assert [line["path"] for line in lines(tmp_path / "log.1")] == ["/a"]
    assert [line["path"] for line in lines(path)] == ["/b"]
