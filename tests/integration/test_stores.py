"""S3, GCS, Azure and the web: the same bytes in and out, conditions that hold, and names that no path can have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.errors import SourceError, StorageError
from pipeline.config import SourceFormat
from pipeline.dest.lease import Lease
from pipeline.sources.source import open_source
from pipeline.storage.location import Version
from pipeline.storage.storage import open_storage
from tests.support.object_server import ObjectServer
from tests.support.s3_place import Place, read_all, source_of
from tests.support.s3_server import FaultProxy, share_of_faults
from tests.support.shard_factory import images, noise, parquet_bytes, tar_bytes
from tests.support.tiny_model import colour_shards

MIB = 2**20
KINDS = pytest.mark.parametrize("kind", ["s3", "gs", "az"])


@KINDS
def test_what_is_written_is_listed_read_and_deleted(place: Place) -> None:
    storage = place.storage
    names = ["a", "x/b c", "x/é漢.tar", "x/100%.tar", "x/#[1]{a,b}?.tar", "x/y/z"]

    for number, name in enumerate(names):
        storage.write_bytes(name, b"%d" % number)

    assert [storage.read_bytes(name) for name in names] == [b"%d" % i for i in range(6)]
    assert [storage.stat(name) for name in sorted(names)] == storage.list(recursive=True)
    assert [file.path for file in storage.list()] == ["a"]
    assert storage.list_folder("x")[1] == ["x/y"]
    storage.write_bytes("a", b"")
    assert storage.read_bytes("a") == b""
    for _ in range(2):
        storage.delete("a")
    assert storage.stat("a") is None
    assert (storage.is_folder("x"), storage.is_folder("a"), storage.list("nowhere")) == (True, False, [])


@KINDS
def test_of_two_writers_one_has_its_way(place: Place, proxy: FaultProxy) -> None:
    storage = place.storage

    first = storage.put_if("lease", b"one", None)
    assert first is not None
    assert storage.put_if("lease", b"two", None) is None
    second = storage.put_if("lease", b"two", first)
    assert second is not None
    assert storage.put_if("lease", b"three", first) is None
    assert storage.read_version("lease") == (b"two", second)
    storage.delete("lease")
    assert storage.put_if("lease", b"four", second) is None
    refused = [answered.status for answered in proxy.calls if answered.call.method == "PUT" and answered.status >= 400]
    assert len(refused) == 3
    assert set(refused) <= {404, 409, 412}


@KINDS
def test_a_missing_bucket_is_said_and_is_no_other_run(store: ObjectServer) -> None:
    missing = f"{store.scheme}://no-such-bucket/out"

    with (
        pytest.raises(
            StorageError,
            match=r"cannot write .*no-such-bucket/out/_shardlabel/lease.json: 404 .*\(check the [^()]* name",
        ) as raised,
        Lease(open_storage(missing)),
    ):
        pass
    assert "RequestId" not in str(raised.value)
    assert "AWS" not in str(raised.value)


@KINDS
def test_a_lost_answer_does_not_make_the_writer_lose(place: Place, proxy: FaultProxy) -> None:
    storage = place.storage
    proxy.rule = lambda call: "lost_answer" if call.method == "PUT" and call.number == 0 else None

    first = storage.put_if("lease", b"one", None)
    proxy.forget()
    second = storage.put_if("lease", b"two", first)

    assert isinstance(first, Version)
    assert storage.read_version("lease") == (b"two", second)


@KINDS
def test_a_fifth_of_all_calls_may_fail(proxy: FaultProxy, place: Place) -> None:
    tar = tar_bytes([*images(20), ("z.jpg", noise(1, 9 * MIB))])
    for name, content in (("a.tar", tar), ("b.parquet", parquet_bytes())):
        place.put(name, content)
    calm = [read_all(source_of(place, name)) for name in ("a.tar", "b.parquet")]
    storage = place.storage
    proxy.forget()
    proxy.rule = share_of_faults(0.2, 3)

    assert [read_all(source_of(place, name)) for name in ("a.tar", "b.parquet")] == calm
    for i in range(20):
        storage.write_bytes(f"out/{i:02d}", b"%d" % i)
    assert [file.path for file in storage.list("out")] == [f"out/{i:02d}" for i in range(20)]
    faults = Counter(answered.fault for answered in proxy.calls)
    assert sum(faults.values()) - faults[None] > 3


@KINDS
def test_a_listing_of_many_pages_is_whole_and_in_order(place: Place) -> None:
    names = [f"{i:05d}" for i in range(120)]
    storage = place.storage
    for name in names:
        place.put(f"many/{name}", b"")

    # Then with a name that is no path on the second page, and on the first.
    for odd in (None, "00115//x", "00005//x"):
        if odd:
            place.put(f"many/{odd}", b"")
            names = sorted([*names, odd])
        pages = list(storage.pages("many", most=100))
        assert len(pages) > 1
        assert [file.path for page in pages for file in page] == [f"many/{name}" for name in names]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve a folder as a web server that knows neither ranges nor ETags."""
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_are_read_from_a_web_server_by_name(web: str, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"a {i}.tar").write_bytes(tar_bytes(images(3)))

    source = open_source([f"{web}/a%20{{0..2}}.tar"], SourceFormat.AUTO)

    assert [file.shard for file in source.files()] == [f"a {i}.tar" for i in range(3)]
    assert len(read_all(source)) == 9
    with pytest.raises(SourceError, match=r"does not exist|cannot be listed"):
        list(open_source([f"{web}/"], SourceFormat.AUTO).files())


def label(source: str, output: str, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "label", source, "--output", output,
               "--model", str(model), "--top-k", "3", "--progress", "none", "--json"]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.ray
@pytest.mark.long
@KINDS
def test_killed_and_resumed_with_a_fifth_of_all_calls_failing_the_files_are_those_of_a_local_run(
    place: Place, proxy: FaultProxy, tiny_model: Path, tmp_path: Path
) -> None:
    colour_shards(tmp_path / "in", shards=20, samples=100)
    for path in (tmp_path / "in").iterdir():
        place.put(f"in/{path.name}", path.read_bytes())
    proxy.rule = share_of_faults(0.2, 7)

    killed = label(f"{place.uri}/in", f"{place.uri}/out", tiny_model)
    while len([name for name in place.names() if name.startswith("out/part-")]) < 5:
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    started = time.perf_counter()
    resumed = label(f"{place.uri}/in", f"{place.uri}/out", tiny_model)
    out, err = resumed.communicate(timeout=280)
    seconds = time.perf_counter() - started
    local = label(str(tmp_path / "in"), str(tmp_path / "out"), tiny_model)
    local.communicate(timeout=280)

    assert resumed.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["images"], summary["status"]) == (2000, "done")
    there = place.server.fetch(f"{place.name}/out")
    assert {path.name: path.read_bytes() for path in there.glob("*.parquet")} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")
    }
    faults = Counter(answered.fault for answered in proxy.calls)
    conditional = sum(answered.status in (409, 412) for answered in proxy.calls)
    sys.stderr.write(f"{place.uri}: {seconds:.1f} s, {dict(faults)}, conditions not met {conditional}\n")
    assert sum(faults.values()) - faults[None] > 10
