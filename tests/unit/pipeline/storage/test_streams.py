"""Reading goes on where it stood, one piece ahead, and never from two versions of a file."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError

from models.errors import SourceError, StorageError
from pipeline.storage.location import FileStat
from pipeline.storage.retries import RetryPolicy
from pipeline.storage.storage import open_storage
from pipeline.storage.stored_file import RandomFile, StoredFile
from pipeline.storage.streams import LOCAL_PIECE_BYTES, FileForward, RetryingStream, one_ahead
from tests.support.shard_factory import noise

QUICK = RetryPolicy(first_wait_s=0.0001, longest_wait_s=0.001)
RESET = GenericError("Generic S3 error: HTTP error: request or response body error\n\nDebug source:\nkind: Interrupted")
DENIED = PermissionDeniedError(
    "it is not allowed: Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>"
)
NOW = datetime(2024, 2, 29, tzinfo=UTC)


@dataclass
class FakeStorage:
    """An object store of one object, whose every piece a test writes: an exception, a shorter read, a new version."""

    content: bytes
    etag: str = '"1"'
    script: list[Any] = field(default_factory=list)
    gets: list[int] = field(default_factory=list)  # where each began
    pieces: int = 0
    heads: int = 0
    is_local: bool = False

    @property
    def store(self) -> FakeStorage:
        return self

    def object(self, name: str) -> tuple[FakeStorage, str]:
        return self, self.key(name)

    def key(self, name: str) -> str:
        return name

    def describe(self, name: str) -> str:
        return f"s3://bucket/{name}"

    @property
    def meta(self) -> dict[str, Any]:
        return {"path": "a.tar", "size": len(self.content), "e_tag": self.etag, "version": None, "last_modified": NOW}

    def head(self, key: str) -> dict[str, Any]:
        self.heads += 1
        return self.meta

    def get(self, key: str, options: dict[str, Any]) -> FakeAnswer:
        if options.get("if_match", self.etag) != self.etag:
            raise PreconditionError("the version is another")
        range_ = options.get("range", {"offset": 0})
        start, end = range_ if isinstance(range_, tuple) else (range_["offset"], len(self.content))
        self.gets.append(start)
        return FakeAnswer(self, self.meta, self.content[start:end])


@dataclass
class FakeAnswer:
    storage: FakeStorage
    meta: dict[str, Any]
    content: bytes

    def stream(self, size: int) -> Iterator[bytes]:
        for start in range(0, len(self.content), size):
            yield self._step(self.content[start : start + size])

    def bytes(self) -> FakeAnswer:
        return self

    def to_bytes(self) -> bytes:
        return self._step(self.content)

    def _step(self, piece: bytes) -> bytes:
        self.storage.pieces += 1
        step = self.storage.script.pop(0) if self.storage.script else None
        if callable(step):
            step = step()
        if isinstance(step, Exception):
            raise step
        return piece[:step]


def stream_of(storage: FakeStorage, **options: Any) -> RetryingStream:
    return RetryingStream(storage, "a.tar", policy=QUICK, **options)  # type: ignore[arg-type] (it quacks)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("pipeline.storage.streams.REMOTE_PIECE_BYTES", 1000)
    monkeypatch.setattr("pipeline.storage.streams.SKIPPED_BYTES", 2000)
    return 1000


def test_a_stream_reads_on_where_it_stood(small_pieces: int) -> None:
    storage = FakeStorage(noise(0, 5500), script=[None, RESET, RESET, None, RESET, None, TimeoutError("stall")])

    with stream_of(storage) as stream:
        parts = [stream.read(700) for _ in range(8)]
        rest = stream.read()

    assert b"".join(parts) + rest == storage.content
    assert storage.gets == [0, 1000, 1000, 2000, 3000]
    assert (stream.retries, storage.heads) == (4, 1)


def test_an_answer_that_ends_early_is_asked_for_the_rest(small_pieces: int) -> None:
    storage = FakeStorage(noise(0, 3000))
    whole = storage.get
    storage.get = lambda key, options: replace(whole(key, options), content=whole(key, options).content[:1500])  # type: ignore[method-assign]

    with stream_of(storage) as stream:
        assert stream.read() == storage.content


def test_the_next_piece_is_on_its_way_while_one_is_used(small_pieces: int) -> None:
    storage = FakeStorage(noise(0, 10_000))

    with stream_of(storage) as stream:
        stream.read(1)
        deadline = time.monotonic() + 5
        while storage.pieces < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        pieces = storage.pieces

    assert pieces == 2  # one ahead, not more: memory is two pieces


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_file_that_changes_between_tries_is_an_error_that_names_it(small_pieces: int, change: str) -> None:
    storage = FakeStorage(noise(0, 5000))

    def change_and_fail() -> Exception:
        storage.etag = '"2"'
        storage.content = noise(1, 5000 + (change == "size"))
        return RESET

    storage.script = [None, None, change_and_fail]
    with stream_of(storage) as stream, pytest.raises(StorageError, match=r"s3://bucket/a\.tar changed while it was"):
        stream.read()


def test_a_server_that_knows_no_conditions_is_seen_through(small_pieces: int) -> None:
    storage = FakeStorage(noise(0, 100))
    file = StoredFile(storage, "a", policy=QUICK)  # type: ignore[arg-type] (it quacks)
    whole = storage.get
    storage.get = lambda key, options: whole(key, {"range": options["range"]})  # type: ignore[method-assign]
    storage.etag = '"2"'

    with pytest.raises(StorageError, match="changed while it was read: it was rewritten"):
        file.read_at(0, 10)


def test_seeking_far_asks_anew_and_seeking_near_reads(small_pieces: int) -> None:
    storage = FakeStorage(noise(0, 100_000))

    with stream_of(storage) as stream:
        stream.read(10)
        near = stream.seek(1500), stream.read(5)
        far = stream.seek(90_000), stream.read(5)
        behind = stream.seek(200_000), stream.read(5)
        with pytest.raises(SourceError, match="cannot go back from byte 100000 to 5"):
            stream.seek(5)

    assert near == (1500, storage.content[1500:1505])
    assert far == (90_000, storage.content[90_000:90_005])
    assert behind == (100_000, b"")
    assert storage.gets == [0, 90_000]
    assert storage.pieces < 12


def test_another_file_than_was_planned_is_an_error() -> None:
    def read(size: int, etag: str) -> bytes:
        storage = FakeStorage(b"x" * 10)
        with stream_of(storage, expected=FileStat("a.tar", size, etag)) as stream:
            content = stream.read()
        assert (storage.heads, storage.gets) == (0, [0])
        return content

    assert read(10, "1") == read(10, "") == b"x" * 10
    with pytest.raises(StorageError, match=r"has changed since the run was planned: its size was 9 bytes and is 10"):
        read(9, "1")
    with pytest.raises(StorageError, match="has changed since the run was planned: it was rewritten"):
        read(10, "2")
    with pytest.raises(StorageError, match="its size was 0 bytes and is 10"):
        stream_of(FakeStorage(b"x" * 10), expected=FileStat("a.tar", 0, "1"))


def test_a_stream_that_is_left_ends_its_thread(small_pieces: int) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        with stream_of(FakeStorage(noise(0, 5000))) as stream:
            stream.read(10)

    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), max_size=20), st.booleans(), st.integers(0, 2**16))
def test_any_mix_of_reads_and_seeks_sees_the_file_as_it_is(
    steps: list[tuple[bool, int]], remote: bool, seed: int
) -> None:
    content = noise(seed, random.Random(seed).randrange(6000))
    if remote:
        fake = FakeStorage(content)
        stream: Any = stream_of(fake)
    else:
        import io

        stream = FileForward(io.BytesIO(content))
    position = 0
    for is_seek, amount in steps:
        if is_seek:
            position = min(len(content), position + amount)
            assert stream.seek(min(stream.tell() + amount, 10**9)) == position
        else:
            assert stream.read(amount) == content[position : position + amount]
            position = min(len(content), position + amount)
        assert stream.tell() == position
    assert stream.read() == content[position:]
    stream.close()


def test_zeros_are_passed_over_in_whole_steps() -> None:
    import io

    stream = FileForward(io.BytesIO(b"a" + bytes(5000) + b"b" + bytes(100)))
    stream.read(1)

    assert stream.skip_zeros(512) == 9 * 512
    assert stream.read(5000 - 9 * 512 + 1).strip(b"\0") == b"b"
    assert stream.skip_zeros(512) == 0


def test_a_local_file_is_read_in_pieces_and_never_whole(tmp_path: Path) -> None:
    content = noise(0, 3 * LOCAL_PIECE_BYTES + 5)
    (tmp_path / "a").write_bytes(content)

    with open_storage(str(tmp_path)).open_stream("a") as stream:
        first = stream.read(10)
        assert len(stream._piece) == LOCAL_PIECE_BYTES
        assert first + stream.read() == content


def test_a_local_file_that_is_written_to_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)

    with open_storage(str(tmp_path)).open_stream("a") as stream:
        stream.read(10)
        with (tmp_path / "a").open("ab") as file:
            file.write(b"more")
        with pytest.raises(StorageError, match="changed while it was read: its size was 100 bytes and is 104"):
            stream.read()


def test_a_local_file_that_is_replaced_is_read_to_its_end_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(b"y" * 100)

    with open_storage(str(tmp_path)).open_stream("a") as stream:
        stream.read(10)
        (tmp_path / "b").replace(tmp_path / "a")
        assert stream.read() == b"x" * 90


def test_random_access_is_as_pyarrow_wants_it(tmp_path: Path) -> None:
    content = noise(0, 10_000)
    (tmp_path / "a").write_bytes(content)
    file = open_storage(str(tmp_path)).open_random("a")

    with pa.PythonFile(file, "r") as wrapped:
        assert wrapped.size() == 10_000
        assert wrapped.read_at(100, 9_950) == content[9_950:]
        wrapped.seek(-10, 2)
        assert wrapped.read() == content[-10:]
    assert file.closed
    assert file.bytes_read == 60


def test_random_access_remembers_why_storage_failed() -> None:
    storage = FakeStorage(b"x" * 100, script=[DENIED])
    file = RandomFile(StoredFile(storage, "a", policy=QUICK))  # type: ignore[arg-type] (it quacks)

    with pytest.raises(StorageError):
        file.read(10)

    assert "AccessDenied" in str(file.failure)


def test_one_ahead_gives_all_items_and_passes_errors_on() -> None:
    def items() -> Any:
        yield from range(5)
        raise StorageError("gone")

    results = one_ahead(items())

    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(StorageError, match="gone"):
        next(results)
