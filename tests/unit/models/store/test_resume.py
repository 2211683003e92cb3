from __future__ import annotations

import hashlib
import time

import pytest

from models.errors import DownloadError
from models.store import http, resume
from models.store.download import fetch
from models.store.files import artifact_path
from tests.support.faulty_server import (
    BODY,
    SHA256,
    WRONG,
    Reply,
    artifact_on,
    cache_files,
    faulty_server,
)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHARDLABEL_MODEL_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(resume, "BACKOFF_S", 0.01)


@pytest.fixture
def server():
    with faulty_server() as faulty:
        yield faulty


@pytest.fixture
def mirror():
    with faulty_server() as faulty:
        yield faulty


def test_fetch_goes_on_where_the_connection_was_cut(server):
    server.replies = [Reply(BODY, cut_at=400_000), Reply(BODY)]

    path = fetch("some", artifact_on(server))

    first, second = server.requests
    assert path.read_bytes() == BODY
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=400000-"
    assert second.headers["If-Range"] == '"first"'
    assert (first.sent, second.sent) == (400_000, len(BODY) - 400_000)


def test_fetch_goes_on_after_silence(server, monkeypatch):
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.1)
    stalled = Reply(BODY, hold_at=300_000)
    server.replies = [stalled, Reply(BODY)]
    start = time.perf_counter()

    path = fetch("some", artifact_on(server))
    stalled.release.set()

    assert time.perf_counter() - start < 5
    assert path.read_bytes() == BODY
    assert server.requests[1].headers["Range"] == "bytes=300000-"


def test_fetch_is_done_at_the_last_byte_though_the_server_keeps_the_connection(server):
    kept = Reply(BODY, hold_at=len(BODY))
    server.replies = [kept]
    start = time.perf_counter()

    fetch("some", artifact_on(server))
    kept.release.set()

    assert time.perf_counter() - start < 10


def test_fetch_goes_on_with_another_source_from_what_the_first_gave(server, mirror):
    server.replies = [Reply(BODY, cut_at=500_000), Reply(status=404)]
    mirror.replies = [Reply(BODY, etag='"of the mirror"')]

    path = fetch("some", artifact_on(server, mirror))

    assert path.read_bytes() == BODY
    assert mirror.requests[0].headers["Range"] == "bytes=500000-"
    assert "If-Range" not in mirror.requests[0].headers
    assert mirror.requests[0].sent == 100_000


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(Reply(BODY, ranges=False), id="server-ignores-ranges"),
        pytest.param(Reply(BODY, etag='"second"'), id="file-has-another-etag"),
    ],
)
def test_fetch_starts_anew_where_the_server_sends_all(server, second):
    server.replies = [Reply(BODY, cut_at=300_000), second]

    path = fetch("some", artifact_on(server))

    assert path.read_bytes() == BODY
    assert server.requests[1].sent == len(BODY)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(Reply(status=416), id="range-not-satisfiable"),
        pytest.param(Reply(status=206, headers={"Content-Range": "bytes 7-9/10"}), id="another-range"),
        pytest.param(Reply(status=206), id="no-content-range"),
    ],
)
def test_fetch_starts_anew_where_the_server_cannot_go_on(server, second):
    server.replies = [Reply(BODY, cut_at=300_000), second, Reply(BODY)]

    path = fetch("some", artifact_on(server))

    assert path.read_bytes() == BODY
    assert "Range" not in server.requests[2].headers


def test_fetch_tries_from_scratch_once_when_a_resumed_file_is_wrong(server):
    server.replies = [Reply(BODY)]
    part = artifact_path(artifact_on(server)).with_name("some.onnx.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100_000)

    path = fetch("some", artifact_on(server))

    assert path.read_bytes() == BODY
    assert [request.headers.get("Range") for request in server.requests] == ["bytes=100000-", None]


@pytest.mark.parametrize("left", [len(BODY), len(BODY) + 5], ids=["whole", "too-long"])
def test_fetch_uses_or_drops_a_partial_file_that_needs_no_more_bytes(server, left):
    server.replies = [Reply(BODY)]
    part = artifact_path(artifact_on(server)).with_name("some.onnx.part")
    part.parent.mkdir(parents=True)
    part.write_bytes((BODY + b"extra")[:left])

    path = fetch("some", artifact_on(server))

    assert path.read_bytes() == BODY
    assert len(server.requests) == (0 if left == len(BODY) else 1)


def test_fetch_never_publishes_a_file_with_another_hash(server):
    server.replies = [Reply(WRONG)]

    with pytest.raises(DownloadError) as caught:
        fetch("some", artifact_on(server))

    assert SHA256 in str(caught.value)
    assert hashlib.sha256(WRONG).hexdigest() in str(caught.value)
    assert len(server.requests) == 1
    assert cache_files() == set()


@pytest.mark.parametrize(
    ("reply", "reason", "most_sent"),
    [
        pytest.param(Reply(status=404), "HTTP 404", 0, id="404"),
        pytest.param(Reply(status=403), "HTTP 403", 0, id="403"),
        pytest.param(Reply(BODY * 20), "has 12000000 bytes, expected 600000", 8_000_000, id="too-long"),
        pytest.param(Reply(BODY * 20, has_length=False), "more than the 600000", 8_000_000, id="endless"),
        pytest.param(Reply(BODY[:9]), "has 9 bytes, expected 600000", 9, id="too-short"),
        pytest.param(Reply(b"\n<!DOCTYPE html><p>Log in"), "an HTML page", 99, id="page"),
        pytest.param(Reply(BODY, headers={"Content-Type": "text/html"}), "an HTML page", 600_000, id="html"),
        pytest.param(Reply(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer", 99, id="lfs-pointer"),
    ],
)
def test_fetch_leaves_a_source_at_once_that_has_another_thing(server, mirror, reply, reason, most_sent):
    server.replies, mirror.replies = [reply], [Reply(status=404)]

    with pytest.raises(DownloadError, match=reason):
        fetch("some", artifact_on(server, mirror))

    assert len(server.requests) == 1
    assert len(mirror.requests) == 1
    assert server.requests[0].sent <= most_sent
    assert "some.onnx" not in cache_files()


def test_fetch_keeps_what_it_has_when_the_next_source_answers_with_a_page(server, mirror):
    server.replies = [Reply(BODY, cut_at=400_000), Reply(status=404)]
    mirror.replies = [Reply(b"<html>", ranges=False)]
    with pytest.raises(DownloadError):
        fetch("some", artifact_on(server, mirror))
    server.replies = [Reply(BODY)]

    fetch("some", artifact_on(server))

    assert server.requests[-1].sent == 200_000


@pytest.mark.parametrize("status", [429, 500, 503])
def test_fetch_asks_again_after_a_transient_error(server, status):
    server.replies = [Reply(status=status, headers={"Retry-After": "0"}), Reply(status=status), Reply(BODY)]

    assert fetch("some", artifact_on(server)).read_bytes() == BODY
    assert len(server.requests) == 3


def test_fetch_gives_up_on_a_source_after_three_transient_errors(server, mirror):
    server.replies, mirror.replies = [Reply(status=500)], [Reply(BODY)]

    fetch("some", artifact_on(server, mirror))

    assert len(server.requests) == 3


def test_fetch_goes_on_as_long_as_each_try_brings_bytes(server, monkeypatch):
    monkeypatch.setattr(resume, "CHUNK_BYTES", 50_000)
    server.replies = [Reply(BODY, cut_at=at) for at in range(100_000, 600_000, 100_000)] + [Reply(BODY)]

    fetch("some", artifact_on(server))

    assert [request.sent for request in server.requests] == [100_000] * 6


@pytest.mark.parametrize("retry_after", ["0.2", "1", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_fetch_waits_as_told_but_not_for_long(server, mirror, monkeypatch, retry_after):
    waits: list[float] = []
    monkeypatch.setattr(resume.time, "sleep", waits.append)
    server.replies = [Reply(status=429, headers={"Retry-After": retry_after}), Reply(BODY)]
    mirror.replies = [Reply(BODY)]

    fetch("some", artifact_on(server, mirror))

    assert len(mirror.requests) == (1 if "2099" in retry_after else 0)
    assert (1.0 in waits) == (retry_after == "1")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param("http://127.0.0.1:1/some.onnx", "cannot connect: .*Connection refused", id="refused"),
        pytest.param("http://no-such-host.invalid/some.onnx", "cannot resolve the host name", id="no such host"),
        pytest.param("http://user:secret@127.0.0.1:99999/some.onnx", "not a valid URL$", id="no such port"),
        pytest.param("ftp://127.0.0.1/some.onnx", "must be an http, https or file URL or a folder", id="ftp"),
    ],
)
def test_a_source_that_cannot_be_asked_says_why(url, reason):
    with pytest.raises(http.SourceError, match=reason), http.open_source(url):
        pass


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(Reply(BODY, hold_at=300_000), r"no data for 0\.1 s", id="silent"),
        pytest.param(Reply(BODY, cut_at=300_000), "connection cut after 300000 of 600000 bytes", id="cut"),
        pytest.param(Reply(status=302, headers={"Location": "/some.onnx"}), "too many redirects", id="circle"),
        pytest.param(Reply(status=302, headers={"Location": "file:///etc/passwd"}), "not a valid URL", id="to a file"),
    ],
)
def test_a_source_that_does_not_send_the_file_says_why(server, monkeypatch, reply, reason):
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(resume, "TRIES_PER_SOURCE", 1)
    server.replies = [reply]

    with pytest.raises(DownloadError, match=reason):
        fetch("some", artifact_on(server))

    reply.release.set()


def test_a_password_goes_to_the_host_that_it_is_for_alone(server, mirror):
    server.replies = [Reply(status=302, headers={"Location": mirror.url.replace("127.0.0.1", "localhost")})]
    mirror.replies = [Reply(BODY)]

    with http.open_source(server.url.replace("//", "//user:p%40ss@")) as answer:
        answer.read()

    assert server.requests[0].headers["Authorization"] == "Basic dXNlcjpwQHNz"
    assert "Authorization" not in mirror.requests[0].headers
