from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from models.catalog import load_spec
from models.errors import ArtifactError, ConfigError, DownloadError
from models.spec import Artifact, Precision
from models.store import download
from models.store.download import fetch, import_file, progress_printer
from models.store.files import artifact_path
from tests.support.faulty_server import (
    BODY,
    WRONG,
    Reply,
    artifact_at,
    artifact_on,
    cache_files,
    faulty_server,
)

ROOT = Path(__file__).parents[4]
CHILD = """
import sys
from models.store import download
from models.spec import Artifact
download.LOCK_POLL_S = 0.05
artifact = Artifact.model_validate_json(sys.argv[1])
print(download.fetch("some", artifact, progress=lambda done, total: print("at", done, flush=True)))
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHARDLABEL_MODEL_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with faulty_server() as faulty:
        yield faulty


@pytest.fixture
def mirror():
    with faulty_server() as faulty:
        yield faulty


def refused_url() -> str:
    """Return the URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/some.onnx"


def spawn(artifact: Artifact) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, artifact.model_dump_json()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_fetch_puts_the_verified_file_in_the_cache_and_reports_progress(server):
    server.replies = [Reply(BODY)]
    reports: list[tuple[int, int]] = []

    path = fetch("some", artifact_on(server), progress=lambda *at: reports.append(at))

    assert path == artifact_path(artifact_on(server))
    assert path.read_bytes() == BODY
    assert cache_files() == {"some.onnx", "some.onnx.verified"}
    assert reports[-1] == (len(BODY), len(BODY))
    assert reports == sorted(reports)


def test_fetch_asks_nobody_for_a_file_that_is_there(server):
    server.replies = [Reply(BODY)]
    fetch("some", artifact_on(server))

    fetch("some", artifact_on(server))

    assert len(server.requests) == 1


def test_fetch_replaces_a_file_that_broke_in_the_cache(server):
    server.replies = [Reply(BODY)]
    path = artifact_path(artifact_on(server))
    path.parent.mkdir(parents=True)
    path.write_bytes(WRONG)

    assert fetch("some", artifact_on(server)).read_bytes() == BODY


def test_fetch_asks_the_mirrors_of_the_environment_first(server, mirror, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_MODEL_MIRROR", f"{refused_url()}, {mirror.url}/base/")
    server.replies, mirror.replies = [Reply(BODY)], [Reply(BODY)]

    fetch("some", artifact_on(server))

    assert [request.path for request in mirror.requests] == ["/base/some.onnx"]
    assert server.requests == []


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_fetch_takes_a_folder_for_a_mirror(tmp_path, monkeypatch, form):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "some.onnx").write_bytes(BODY)
    monkeypatch.setenv("SHARDLABEL_MODEL_MIRROR", f"/nowhere {form.format(tmp_path / 'share')}")

    assert fetch("some", artifact_at()).read_bytes() == BODY


@pytest.mark.parametrize("value", ["ftp://host/x", "s3://bucket", "http://[bad/x"])
def test_fetch_refuses_a_mirror_that_is_no_url(monkeypatch, value):
    monkeypatch.setenv("SHARDLABEL_MODEL_MIRROR", value)

    with pytest.raises(ConfigError):
        fetch("some", artifact_at())


def test_fetch_gives_a_mirror_its_password_and_query_and_shows_neither(mirror, monkeypatch):
    base = mirror.url.replace("http://", "http://me:p%40ss@") + "/base?sig=secret"
    monkeypatch.setenv("SHARDLABEL_MODEL_MIRROR", base)
    mirror.replies = [Reply(status=404)]

    with pytest.raises(DownloadError) as caught:
        fetch("some", artifact_at())

    assert mirror.requests[0].path == "/base/some.onnx?sig=secret"
    assert mirror.requests[0].headers["Authorization"] == "Basic bWU6cEBzcw=="
    assert "secret" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)


def test_fetch_without_network_fails_soon_and_names_the_ways_out(monkeypatch):
    lookups: list[str] = []

    def no_network(host, *args, **kwargs):
        lookups.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    artifact = load_spec("resnet18-v2").artifact(Precision.FP32)
    start = time.perf_counter()

    with pytest.raises(DownloadError) as caught:
        fetch("resnet18-v2", artifact)

    message = str(caught.value)
    assert time.perf_counter() - start < 5
    assert len(lookups) == len(set(lookups))
    assert all(f"{url}: cannot resolve" in message for url in artifact.sources)
    assert "SHARDLABEL_MODEL_MIRROR=URL" in message
    assert "shardlabel models pull resnet18-v2 --from FILE" in message
    assert "--model efficientnet-lite0" in message


def test_two_processes_download_once(server):
    held = Reply(BODY, hold_at=300_000)
    server.replies = [held]
    artifact = artifact_on(server)
    with spawn(artifact) as first:
        assert held.holding.wait(20)
        with spawn(artifact) as second:
            waiting = second.stdout.readline()
            held.release.set()
            outputs = [first.communicate(timeout=20)[0], second.communicate(timeout=20)[0]]

    assert waiting.startswith("at ")
    assert all(output.strip().endswith("some.onnx") for output in outputs)
    assert [request.sent for request in server.requests] == [len(BODY)]


def test_fetch_takes_over_from_a_process_that_was_killed(server):
    held = Reply(BODY, hold_at=300_000)
    server.replies = [held, Reply(BODY)]
    artifact = artifact_on(server)
    part = artifact_path(artifact).with_name("some.onnx.part")
    with spawn(artifact) as child:
        while not (part.exists() and part.stat().st_size >= 262_144):
            time.sleep(0.01)
            assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        held.release.set()
    had = part.stat().st_size

    path = fetch("some", artifact)

    assert path.read_bytes() == BODY
    assert server.requests[1].headers["Range"] == f"bytes={had}-"
    assert server.requests[1].sent == len(BODY) - had


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_fetch_says_that_the_disk_is_full_and_leaves_nothing_on_it(server):
    server.replies = [Reply(BODY)]
    part = artifact_path(artifact_on(server)).with_name("some.onnx.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")

    with pytest.raises(ArtifactError, match=r"disk is full .*SHARDLABEL_HOME"):
        fetch("some", artifact_on(server))

    assert cache_files() == set()


def test_fetch_says_that_the_cache_is_read_only(server, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)

    with pytest.raises(ArtifactError, match=r"Read-only .*set SHARDLABEL_HOME"):
        fetch("some", artifact_on(server))


def test_fetch_gives_up_on_a_process_that_holds_the_lock_and_does_nothing(server, monkeypatch):
    monkeypatch.setattr(download, "LOCK_POLL_S", 0.01)
    monkeypatch.setattr(download, "LOCK_STALL_S", 0.1)
    path = artifact_path(artifact_on(server))
    path.parent.mkdir(parents=True)

    with download.FileLock(f"{path}.lock"), pytest.raises(ArtifactError, match=r"some\.onnx\.lock"):
        fetch("some", artifact_on(server))


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}"])
def test_import_file_copies_the_right_file_and_drops_a_cut_download(tmp_path, form):
    spec = load_spec("resnet18-v2").model_copy(update={"artifacts": {Precision.FP32: artifact_at()}})
    (tmp_path / "mine.onnx").write_bytes(BODY)
    part = artifact_path(artifact_at()).with_name("some.onnx.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:9])

    path = import_file(spec, Precision.FP32, form.format(tmp_path / "mine.onnx"))

    assert path.read_bytes() == BODY
    assert cache_files() == {"some.onnx", "some.onnx.verified"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(WRONG, "SHA-256"), (BODY[:-1], "has 599999 bytes, expected 600000"), (None, "No such file")],
    ids=["wrong-byte", "too-short", "missing"],
)
def test_import_file_refuses_another_file(tmp_path, content, message):
    spec = load_spec("resnet18-v2").model_copy(update={"artifacts": {Precision.FP32: artifact_at()}})
    if content is not None:
        (tmp_path / "mine.onnx").write_bytes(content)

    with pytest.raises(ArtifactError, match=message):
        import_file(spec, Precision.FP32, tmp_path / "mine.onnx")

    assert not artifact_path(artifact_at()).exists()


def test_import_file_takes_no_url_of_a_server():
    with pytest.raises(ConfigError, match="SHARDLABEL_MODEL_MIRROR"):
        import_file(load_spec("resnet18-v2"), Precision.FP32, "https://host/some.onnx")


def test_progress_printer_writes_a_bar_on_a_terminal_and_a_line_now_and_then_in_a_log():
    log, terminal = io.StringIO(), io.StringIO()

    with progress_printer("some", Console(file=log)) as report:
        for done in (1_000_000, 2_000_000, 4_000_000):
            report(done, 4_000_000)
    with progress_printer("some", Console(file=terminal, force_terminal=True, width=100)) as report:
        report(4_000_000, 4_000_000)

    assert log.getvalue() == "some: 1.0 of 4.0 MB (25 %)\nsome: 4.0 of 4.0 MB (100 %)\n"
    assert "4.0/4.0 MB" in terminal.getvalue()


def test_progress_printer_writes_nothing_when_nothing_is_downloaded():
    log = io.StringIO()

    with progress_printer("some", Console(file=log)):
        pass

    assert log.getvalue() == ""
