"""Commit records: which units are finished, and what is in each.

A unit is finished when its record is in `DEST/_shardlabel/commits/`. Its Parquet file was published whole before that,
under a name and with bytes that a second run of the unit gives again; so dying between the two costs the unit's work,
and nothing else. The driver writes the records of all units that finished within a second as one file of JSON lines:
an object per unit would be ten million objects to list for ten million shards. Once many files lie there they are
merged into one Parquet file.
"""

from __future__ import annotations

import io
import json
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ConfigError
from pipeline.plan import STATE_FOLDER
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

COMMITS_FOLDER = f"{STATE_FOLDER}/commits"
FLUSH_SECONDS = 1.0
# A resume lists and reads at most so many small files.
MERGE_FILES = 256

_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("part", pa.string()),
        ("rows", pa.int64()),
        ("ok", pa.int64()),
        ("errors", pa.string()),
        ("seconds", pa.float64()),
        ("bytes_read", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("shards", pa.int64()),
        ("incomplete", pa.string()),
        ("skipped", pa.string()),
    ]
)
_JSON_COLUMNS = ("errors", "incomplete", "skipped")


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a finished unit.

    Attributes:
        unit: Its number in the plan.
        part: Its Parquet file, below DEST.
        rows: In that file.
        ok: Rows with status ok.
        errors: Rows by other status.
        seconds: That the unit took.
        bytes_read: Of input.
        size: Of the Parquet file, bytes.
        sha256: Of the Parquet file.
        shards: How many shards, or parts of one, it holds.
        incomplete: What is missing of which shard, in a sentence each.
        skipped: Members that gave no row, by kind.
    """

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
        """Count a record in."""
        self.units += 1
        self.rows += commit.rows
        self.ok += commit.ok
        self.bytes_read += commit.bytes_read
        self.output_bytes += commit.size
        for status, count in commit.errors.items():
            self.errors[status] = self.errors.get(status, 0) + count
        self.incomplete += len(commit.incomplete)
        for shard, what in commit.incomplete.items():
            if len(self.incomplete_named) < MAX_NAMED:
                self.incomplete_named[shard] = what


# Incomplete shards that a summary names; the commit records name all.
MAX_NAMED = 100


class CommitLog:
    """The commit records of one DEST. One run at a time writes (see `pipeline.lease`); anybody may read."""

    def __init__(self, dest: Storage, units: int) -> None:
        self._dest = dest
        self._units = units
        self._pending: list[Commit] = []
        self._flushed = float("-inf")
        self._files: list[str] = []
        self._next = 0

    def load(self) -> tuple[npt.NDArray[np.bool_], Totals]:
        """Read what is finished.

        Returns:
            (done, totals): bool of shape (units,), and the sums over all records.

        Raises:
            ConfigError: A record does not belong to this plan.
        """
        done = np.zeros(self._units, np.bool_)
        totals = Totals()
        names = [file.path.rpartition("/")[2] for file in self._dest.list(COMMITS_FOLDER)]
        self._files = [name for name in names if name.startswith("commits-")]
        self._next = max((int(name.split("-")[1]) + 1 for name in self._files), default=0)
        for commit in self.records(self._files):
            if not 0 <= commit.unit < self._units:
                raise ConfigError(
                    f"{self._dest.describe()} has a commit record of unit {commit.unit}, and its plan has "
                    f"{self._units} units; start anew with --overwrite or another --output"
                )
            if not done[commit.unit]:
                done[commit.unit] = True
                totals.add(commit)
        return done, totals

    def records(self, names: list[str] | None = None) -> Iterator[Commit]:
        """Yield every record, file by file; a unit may come twice where a merge was cut short."""
        if names is None:
            names = [file.path.rpartition("/")[2] for file in self._dest.list(COMMITS_FOLDER)]
        for name in names:
            if name.endswith(".parquet"):
                yield from self._read_merged(name)
            elif name.endswith(".jsonl"):
                for line in self._dest.read_bytes(f"{COMMITS_FOLDER}/{name}").splitlines():
                    yield Commit(**json.loads(line))

    def __enter__(self) -> CommitLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.flush()

    def append(self, commit: Commit) -> None:
        """Take a record in; it is written at once, or with those of the same second."""
        self._pending.append(commit)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending. After this those units are finished, whatever dies."""
        if not self._pending:
            return
        lines = "".join(json.dumps(asdict(commit)) + "\n" for commit in self._pending)
        self._add_file(lines.encode(), "jsonl")
        self._pending = []
        self._flushed = time.monotonic()
        if len(self._files) >= MERGE_FILES:
            self.merge()

    def merge(self) -> None:
        """Put the small files' records into one Parquet file, then delete them; a cut in between loses nothing."""
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
        for name in small:
            self._dest.delete(f"{COMMITS_FOLDER}/{name}")
            self._files.remove(name)

    def _add_file(self, content: bytes, suffix: str) -> None:
        # The random part keeps a driver that was thought dead from overwriting another's records.
        name = f"commits-{self._next:09d}-{uuid.uuid4().hex[:8]}.{suffix}"
        self._dest.write_bytes(f"{COMMITS_FOLDER}/{name}", content)
        self._files.append(name)
        self._next += 1

    def _read_merged(self, name: str) -> Iterator[Commit]:
        file = pq.ParquetFile(io.BytesIO(self._dest.read_bytes(f"{COMMITS_FOLDER}/{name}")))
        for batch in file.iter_batches(batch_size=10_000):
            for row in batch.to_pylist():
                values: dict[str, Any] = {**row, **{name: json.loads(row[name]) for name in _JSON_COLUMNS}}
                yield Commit(**values)
