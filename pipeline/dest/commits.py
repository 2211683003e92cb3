"""Commit records: which units are finished, and what is in each.

A unit is finished when its record is in `DEST/_shardlabel/commits/`. Its Parquet file is published whole before that. A
second run of the unit gives the same name and bytes, so a crash between the two costs only the unit's work. The driver
writes the records of all units that finish within a second as one file of JSON lines: an object per unit would mean ten
million objects to list. Once there are many files, they are merged into one Parquet file. Threads do both: no result
waits for storage, and a driver that dies loses the records of one second.
"""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from models.errors import ConfigError
from pipeline.dest.plan import STATE_FOLDER, Plan
from pipeline.sources.unit import part_name
from pipeline.storage.storage import Storage

logger = logging.getLogger(__name__)

COMMITS_FOLDER = f"{STATE_FOLDER}/commits"
FLUSH_SECONDS = 1.0
# Small files are merged at this number, so that a resume need not read more of them.
MERGE_FILES = 256

_NUMBERS = ("unit", "rows", "ok", "bytes_read", "size", "shards")
_TEXTS = ("part", "errors", "sha256", "incomplete", "skipped", "plan", "token", "made_by")
_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in _NUMBERS] + [("seconds", pa.float64())] + [(name, pa.string()) for name in _TEXTS]
)
_FILE = re.compile(r"commits-[0-9]{9,}-[0-9a-f]{8}\.(jsonl|parquet)")
_JSON_COLUMNS = ("errors", "incomplete", "skipped")


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a finished unit.

    Attributes:
        unit: Its number in the plan.
        part: Name of its Parquet file in DEST.
        rows: Number of rows in that file.
        ok: Rows with status ok.
        errors: Rows with another status, by status.
        seconds: Time that the unit took.
        bytes_read: Bytes of input read.
        size: Bytes of the Parquet file.
        sha256: SHA-256 of the Parquet file.
        shards: How many shards, or parts of one, it holds.
        incomplete: What is missing, by shard.
        skipped: Number of members without a row, by kind.
        plan: The id of the plan that first had the unit.
        token: Token of the run that made it; "" on a disk. See `pipeline.dest.lease`.
        made_by: Versions and CPU model, to explain a difference in the last bits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    unit: int
    part: str
    rows: int
    ok: int
    errors: dict[str, int]
    seconds: float
    bytes_read: int
    size: int
    sha256: str
    shards: int = 1
    incomplete: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    plan: str = ""
    token: str = ""
    made_by: str = ""


_RECORD = TypeAdapter(Commit)


# Maximum number of incomplete shards in a summary; the commit records name all.
MAX_NAMED = 100


@dataclass(slots=True)
class Totals:
    """Sums over commit records."""

    units: int = 0
    rows: int = 0
    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    output_bytes: int = 0
    incomplete: int = 0
    incomplete_named: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit) -> None:
        """Add a record."""
        self.units += 1
        self.rows += commit.rows
        self.ok += commit.ok
        self.bytes_read += commit.bytes_read
        self.output_bytes += commit.size
        for status, count in commit.errors.items():
            self.errors[status] = self.errors.get(status, 0) + count
        named = self.incomplete_named
        for shard, what in commit.incomplete.items():
            before = named.get(shard)  # from another piece of the shard
            self.incomplete += before is None
            if before is None and len(named) < MAX_NAMED:
                named[shard] = what
            elif before is not None and what not in before:
                named[shard] = f"{before}; {what}"


class CommitLog:
    """The commit records of one DEST. One run at a time may write (see `pipeline.dest.lease`); anyone may read.

    As a context manager it accepts records, and writes them every second and at the end.

    Args:
        dest: DEST.
        units: Number of units in its plan.
        plan: The plan's id. Records of another plan, by a driver that was presumed dead, are ignored.
        check: Called before each write; raises if this run no longer holds DEST.
        earlier: Ids of the plan before it grew, with the number of units then.
    """

    def __init__(
        self,
        dest: Storage,
        units: int,
        plan: str = "",
        check: Callable[[], None] = lambda: None,
        earlier: Mapping[str, int] | None = None,
    ) -> None:
        self._dest = dest
        self._check = check
        self._units = units
        self._ends = [*(earlier or {}).values()]
        self._plans = [*(earlier or {}), plan]
        self._pending: SimpleQueue[Commit] = SimpleQueue()
        self._files: list[str] = []
        self._next = 0
        self._lock = threading.Lock()  # guards the fields above
        self._flushing = threading.Lock()
        self._closed = threading.Event()
        self._threads: ThreadPoolExecutor | None = None
        self._work: list[Future[None]] = []

    @classmethod
    def of(cls, dest: Storage, plan: Plan, check: Callable[[], None] = lambda: None) -> CommitLog:
        """Return the log of a plan's units."""
        return cls(dest, plan.units, plan.id, check, plan.earlier)

    def load(self) -> tuple[npt.NDArray[np.bool_], Totals]:
        """Read which units are finished.

        Returns:
            (done, totals): bool of shape (units,), and the sums over all records.

        Raises:
            ConfigError: A record cannot be read, or does not belong to this plan.
        """
        done = np.zeros(self._units, np.bool_)
        totals = Totals()
        self._files = self.names()
        self._next = max((int(name.split("-")[1]) + 1 for name in self._files), default=0)
        for commit in self.records(self._files):
            if not done[commit.unit]:
                done[commit.unit] = True
                totals.add(commit)
        return done, totals

    def names(self) -> list[str]:
        """Return the names of the record files."""
        names = (file.path.rpartition("/")[2] for file in self._dest.list(COMMITS_FOLDER))
        return [name for name in names if _FILE.fullmatch(name)]

    def records(self, names: list[str] | None = None) -> Iterator[Commit]:
        """Yield every record of this plan, file by file; after an interrupted merge a unit may come twice.

        Raises:
            ConfigError: A record cannot be read, or its unit is not in the plan; the message names the file.
        """
        others = 0
        for name in self.names() if names is None else names:
            for commit in self._read(name):
                if commit.plan == self._plan_of(commit.unit):
                    yield commit
                else:
                    others += 1
        if others:
            logger.warning("%s: %d commit records of another plan are ignored", self._dest.describe(), others)

    def __enter__(self) -> CommitLog:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="commits")
        self._work.append(self._threads.submit(self._flush_by_time))
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._threads is not None
        self._closed.set()
        wait(list(self._work))  # the flushing thread starts merges, so it must end before the pool closes
        self._threads.shutdown()
        self._raise_failures()
        self.flush()

    def append(self, commit: Commit) -> None:
        """Add a record; it is written within about a second. Raises if earlier ones could not be written."""
        self._raise_failures()
        self._pending.put(replace(commit, plan=self._plan_of(commit.unit)))

    def flush(self) -> None:
        """Write the pending records. After this their units are finished, whatever crashes."""
        with self._flushing:
            lines = []
            with suppress(Empty):
                while True:
                    lines.append(json.dumps(asdict(self._pending.get_nowait())) + "\n")
            if lines:
                self._add_file("".join(lines).encode(), "jsonl")

    def merge(self) -> None:
        """Merge the small files into one Parquet file, then delete them; a crash in between loses nothing."""
        with self._lock:
            small = [name for name in self._files if name.endswith(".jsonl")]
        rows = {commit.unit: asdict(commit) for commit in self.records(small)}
        if not rows:
            return
        for row in rows.values():
            for column in _JSON_COLUMNS:
                row[column] = json.dumps(row[column])
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows.values()), schema=_SCHEMA), buffer, compression="zstd")
        self._add_file(buffer.getvalue(), "parquet")
        self._check()
        for name in small:
            self._dest.delete(f"{COMMITS_FOLDER}/{name}")
            with self._lock:
                self._files.remove(name)

    def _plan_of(self, unit: int) -> str:
        """Return the id of the plan that first had a unit."""
        return self._plans[bisect_right(self._ends, unit)]

    def _flush_by_time(self) -> None:
        merging: Future[None] | None = None
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()
            with self._lock:
                many = sum(name.endswith(".jsonl") for name in self._files) >= MERGE_FILES
            if many and self._threads is not None and (merging is None or merging.done()):
                merging = self._threads.submit(self.merge)
                self._work.append(merging)

    def _raise_failures(self) -> None:
        for work in [work for work in self._work if work.done()]:
            self._work.remove(work)
            work.result()

    def _add_file(self, content: bytes, suffix: str) -> None:
        with self._lock:
            number = self._next
            self._next += 1
        # The random part keeps a driver that was presumed dead from overwriting another's records.
        name = f"commits-{number:09d}-{uuid.uuid4().hex[:8]}.{suffix}"
        self._check()
        self._dest.create(f"{COMMITS_FOLDER}/{name}", content)
        with self._lock:
            self._files.append(name)

    def _read(self, name: str) -> Iterator[Commit]:
        path = f"{COMMITS_FOLDER}/{name}"
        content = self._dest.read_bytes(path)
        try:
            for values in (
                _parquet_rows(content) if name.endswith(".parquet") else map(json.loads, content.splitlines())
            ):
                commit = _RECORD.validate_python(values)
                if commit.plan == self._plan_of(commit.unit):
                    _check_unit(commit, self._units)
                yield commit
        except (ValueError, TypeError, KeyError, OSError) as err:
            raise ConfigError(
                f"{self._dest.describe(path)} is damaged, or of a newer version of shardlabel: {_in_short(err)}; start "
                "over with --overwrite or another --output"
            ) from err


def _check_unit(commit: Commit, units: int) -> None:
    if not 0 <= commit.unit < units or commit.part != part_name(commit.unit):
        raise ValueError(f"unit {commit.unit} with {commit.part} is not in the plan, which has {units} units")


def _parquet_rows(content: bytes) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(batch_size=10_000, use_threads=False):
        for row in batch.to_pylist():
            yield {**row, **{name: json.loads(row[name]) for name in _JSON_COLUMNS}}


def _in_short(err: Exception) -> str:
    first = err.errors()[0] if isinstance(err, ValidationError) else None
    return f"field {first['loc'][0]}: {first['msg'].lower()}" if first and first["loc"] else " ".join(str(err).split())
