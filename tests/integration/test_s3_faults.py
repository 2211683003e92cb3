"""A real S3 server behind a proxy that fails as storage does: right bytes in the end, or an error that says why."""

from __future__ import annotations

import _thread
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from models.decode.decode import ImageLimits
from models.errors import SourceError, StorageError
from pipeline.config import SourceFormat
from pipeline.sources.images import AHEAD_BYTES, REMOTE_CALLS, read_images
from pipeline.sources.reader import slices
from pipeline.sources.sample import ShardNotes
from pipeline.sources.source import open_source
from pipeline.storage import stores
from pipeline.storage.retries import RetryPolicy, retried
from pipeline.storage.storage import open_storage
from tests.support.s3_place import Place, read_all, source_of
from tests.support.s3_server import (
    BUCKET,
    Call,
    FaultProxy,
    S3Server,
    free_port,
    running_proxy,
    running_s3,
    share_of_faults,
)
from tests.support.shard_factory import images, noise, parquet_bytes, tar_bytes

MIB = 2**20


def once(fault: str, wanted: Callable[[Call], bool]) -> Callable[[Call], str | None]:
    """Let the first call of a kind fail."""
    left = [fault]
    return lambda call: left.pop() if left and wanted(call) else None


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fifth_of_all_calls_may_fail(proxy: FaultProxy, place: Place, seed: int) -> None:
    big, tar = noise(seed, 20 * MIB), tar_bytes([*images(20), ("z.jpg", noise(seed, 9 * MIB))])
    parquet = parquet_bytes()
    for name, content in (("big", big), ("a.tar", tar), ("b.parquet", parquet)):
        place.put(name, content)
    calm = [read_all(source_of(place, name)) for name in ("a.tar", "b.parquet")]
    storage = place.storage
    proxy.forget()
    proxy.rule = share_of_faults(0.2, seed)

    with storage.open_stream("big") as stream:
        assert stream.read() == big
    assert [read_all(source_of(place, name)) for name in ("a.tar", "b.parquet")] == calm
    for i in range(20):
        storage.write_bytes(f"out/{i:02d}", b"%d" % i)
    storage.write_bytes("out/big", big)
    listings = [[file.path for file in storage.list("out")] for _ in range(10)]

    proxy.rule = lambda call: None
    assert listings == [[*(f"out/{i:02d}" for i in range(20)), "out/big"]] * 10
    assert [storage.read_bytes(f"out/{i:02d}") for i in range(20)] == [b"%d" % i for i in range(20)]
    assert storage.read_bytes("out/big") == big
    faults = Counter(answered.fault for answered in proxy.calls)
    assert sum(faults.values()) - faults[None] > 3


def test_a_stalled_request_is_given_up_and_asked_again(
    proxy: FaultProxy, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.location.open_store", partial(stores.open_store, silence_s=1))
    place.put("a", b"content")
    storage = place.storage
    proxy.rule = once("stall", lambda call: call.method == "GET")
    started = time.perf_counter()

    assert storage.read_bytes("a") == b"content"
    assert 0.9 < time.perf_counter() - started < 10


class Together:
    """A proxy's rule: requests for objects wait for each other until so many are there at a time, or for `wait_s`."""

    def __init__(self, wanted: int, wait_s: float) -> None:
        self.most = self._now = 0
        self._wanted, self._wait_s = wanted, wait_s
        self._changed = threading.Condition()

    def __call__(self, call: Call) -> None:
        if call.method != "GET" or call.is_listing:
            return
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self._wanted, self._wait_s)
            self._now -= 1


def test_many_loose_images_are_asked_for_at_a_time_and_come_in_order(proxy: FaultProxy, place: Place) -> None:
    for number in range(40):
        place.put(f"{number:02d}.jpg", b"image %d" % number)
    source = source_of(place)
    pieces = list(slices(source))
    place.remove("07.jpg")
    proxy.rule = together = Together(REMOTE_CALLS, 10)  # less than a request may be silent

    samples = list(read_images(source.base, pieces, ShardNotes(), ImageLimits()))

    assert together.most == REMOTE_CALLS >= 32
    assert [sample.key for sample in samples] == [f"{number:02d}.jpg" for number in range(40)]
    assert [sample.data for sample in samples if sample.key != "07.jpg"] == [
        b"image %d" % number for number in range(40) if number != 7
    ]
    assert (samples[7].status, samples[7].error) == ("empty", "the file is gone since the run was planned")


def test_large_loose_images_are_asked_for_as_far_as_there_is_memory_for_them(proxy: FaultProxy, place: Place) -> None:
    for number in range(6):
        place.put(f"{number}.jpg", bytes(AHEAD_BYTES // 2 - 1))
    source = source_of(place)
    proxy.rule = together = Together(3, 0.5)

    samples = read_all(source)

    assert [len(sample.data or b"") for sample in samples] == [AHEAD_BYTES // 2 - 1] * 6
    assert together.most == 2


def test_an_object_that_changes_between_requests_is_an_error_that_names_it(proxy: FaultProxy, place: Place) -> None:
    place.put("a.tar", noise(0, 20 * MIB))

    def change(call: Call) -> str | None:
        if call.method == "GET" and call.number == 0 and not call.range:
            return "truncate"
        if call.range:
            place.put("a.tar", noise(1, 20 * MIB))
        return None

    proxy.rule = change
    with (
        place.storage.open_stream("a.tar") as stream,
        pytest.raises(StorageError, match=rf"{place.uri}/a\.tar changed while it was read: it was rewritten"),
    ):
        stream.read()


@pytest.mark.parametrize("fault", ["denied", "reset"])
def test_an_upload_that_fails_leaves_what_was_there(
    proxy: FaultProxy, place: Place, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = place.storage
    storage.write_bytes("part", b"before")
    temporary = tmp_path / "new"
    temporary.write_bytes(noise(0, 25 * MIB))
    monkeypatch.setattr("pipeline.storage.storage.retried", partial(retried, policy=RetryPolicy(2, 0.01)))
    proxy.rule = lambda call: fault if call.method == "PUT" else None

    with pytest.raises(StorageError, match=rf"cannot write {place.uri}/part: "):
        storage.publish(temporary, "part")

    proxy.rule = lambda call: None
    assert storage.read_bytes("part") == b"before"
    assert not temporary.exists()


def test_an_interrupt_leaves_no_half_object(proxy: FaultProxy, place: Place) -> None:
    storage = place.storage
    content = noise(0, 12 * MIB)

    def interrupt(call: Call) -> str | None:
        if call.method == "PUT" and call.number == 0:
            _thread.interrupt_main()
            time.sleep(0.2)
        return None

    proxy.rule = interrupt
    # What a shell starts in the background may have SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes("new", content)
    finally:
        signal.signal(signal.SIGINT, before)

    found = storage.stat("new")
    assert found is None or storage.read_bytes("new") == content


def run(code: str, environment: dict[str, str]) -> tuple[str, float]:
    """Run a program in a process of its own; return the last line it said, and its seconds without the imports."""
    begin = (
        "import time; from pipeline.storage.storage import open_storage\n"
        "from pipeline.sources.source import open_source\n"
    )
    end = "\nexcept Exception as err: print(type(err).__name__, err, time.perf_counter() - started, sep='|')"
    body = f"{begin}started = time.perf_counter()\ntry: {code}{end}"
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, env=environment, check=False)
    *said, seconds = done.stdout.strip().rpartition("|")
    return said[0], float(seconds)


WRITE = "open_storage({uri!r}).write_bytes('x', b'x')"
READ = "open_source([{uri!r}], 'auto')"


@pytest.mark.parametrize(
    ("code", "fault", "message"),
    [
        (WRITE, "secret", "cannot write {uri}/x: 403 Forbidden, SignatureDoesNotMatch: .*check AWS_SECRET_ACCESS_KEY"),
        (WRITE, "key_id", "cannot write {uri}/x: 403 Forbidden, InvalidAccessKeyId: .*check AWS_ACCESS_KEY_ID"),
        (READ, "denied", "cannot list {uri}: 403 Forbidden, AccessDenied: .*check the credentials"),
    ],
)
def test_wrong_keys_fail_at_once_with_path_and_reason(
    proxy: FaultProxy, place: Place, code: str, fault: str, message: str
) -> None:
    proxy.rule = lambda call: fault

    said, seconds = run(code.format(uri=place.uri), proxy.environment())

    assert re.match(rf"StorageError\|{message.format(uri=place.uri)}", said), said
    assert seconds < 20
    assert len(proxy.calls) == 1


def test_a_missing_bucket_is_an_error_that_names_it(store: S3Server) -> None:
    with pytest.raises(StorageError, match=r"cannot write s3://nowhere/x: 404 Not Found, NoSuchBucket"):
        open_storage("s3://nowhere").write_bytes("x", b"x")
    for spec in ("s3://nowhere/a.tar", "s3://nowhere/*.tar", "s3://nowhere/folder"):
        with pytest.raises(SourceError, match="there is no bucket nowhere"):
            open_source([spec], SourceFormat.AUTO)


def test_a_dead_endpoint_is_given_up_when_its_patience_is(store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    started = time.perf_counter()

    with pytest.raises(StorageError, match=r"cannot read s3://bucket/a: cannot connect: Connection refused .*tries in"):
        open_storage("s3://bucket").open_stream("a", policy=RetryPolicy(unreachable_s=1.0))

    assert 1 <= time.perf_counter() - started < 20


def test_a_server_that_comes_back_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.put("a", b"content")
        with running_proxy(server) as proxy:
            port = proxy.port
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            storage = open_storage(f"s3://{BUCKET}")
            assert storage.read_bytes("a") == b"content"
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(storage.read_bytes, "a")
            time.sleep(1.5)
            with running_proxy(server, port=port):
                assert reading.result(30) == b"content"
