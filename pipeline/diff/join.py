"""Rows of two DESTs, joined by shard and key, in bounded memory.

Where both plans have a unit of the same shards, row n of its two part files is the same sample: the files are read side by
side, and their keys compared. All other rows, such as those of different plans, are written to temporary files by a hash
of the key, and joined file by file.

A prediction log has a row for each request, and names an image by the SHA-256 of its bytes. So if one side is a log, both
are joined by that hash, which the other side has in column `content_sha256`. The last row of an image counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ConfigError, StorageError
from pipeline.dest.finished import FinishedDest, open_part
from pipeline.dest.plan import iter_units
from pipeline.sources.unit import Unit
from pipeline.storage.listing import CALLS_AHEAD, ahead
from pipeline.storage.retries import reason

CONTENT = "content_sha256"
COLUMNS = ("shard", "key", "label", "label_id", "score", "status", "top_ids")
# Place of a row in its DEST.
UNIT, ROW = "_unit", "_row"
# Rows compared at a time; smaller units are read whole, several ahead.
CHUNK_ROWS = 65_536
# Rows in memory before they are written to the temporary files, and rows that such a file should hold.
SPILL_ROWS = 131_072
PARTITION_ROWS = 250_000
# Each partition is two open files.
MAX_PARTITIONS = 256
LOCAL_UNITS = 3


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows of both sides, with COLUMNS; row i of `old` and of `new` is the same sample.

    Attributes:
        old: Rows of OLD, with UNIT and ROW.
        new: Rows of NEW.
        only_old: Rows that NEW does not have.
        only_new: Rows that OLD does not have.
    """

    old: pa.Table
    new: pa.Table
    only_old: pa.Table
    only_new: pa.Table


def join_rows(old: FinishedDest, new: FinishedDest) -> Iterator[Joined]:
    """Yield all rows of both, each once.

    Raises:
        ConfigError: One is a prediction log, and the other an output without SHA-256.
        StorageError: A part file cannot be read, or the disk is full.
    """
    by_image = old.plan.is_log or new.plan.is_log
    names = _image_names(old, new) if by_image else (None, None)
    with tempfile.TemporaryDirectory(prefix="shardlabel-diff-") as folder, ExitStack() as stack:
        rows = int(old.rows.sum() + new.rows.sum())
        count = min(MAX_PARTITIONS, 1 + rows // (2 * PARTITION_ROWS))
        left, right = (_Spill(Path(folder), name, count, stack) for name in ("old", "new"))
        nothing = SCHEMA.empty_table()
        calls = LOCAL_UNITS if old.dest.is_local and new.dest.is_local else CALLS_AHEAD
        for pairs in ahead(_work(old, new), lambda numbers: _side_by_side(old, new, names, *numbers), calls=calls):
            for a, b in pairs:
                if a is not None and b is not None and a["key"].equals(b["key"]) and a["shard"].equals(b["shard"]):
                    yield Joined(a, b, nothing, nothing)
                else:
                    left.add(a)
                    right.add(b)
        for a, b in zip(left.partitions(), right.partitions(), strict=True):
            yield _joined(_last(a), _last(b)) if by_image else _joined(a, b)


def _work(old: FinishedDest, new: FinishedDest) -> Iterator[tuple[int | None, int | None]]:
    """Yield the numbers of units with the same shards as pairs, and other units with None beside them."""

    def held(unit: Unit) -> list[tuple[str, int, int, int]]:
        return [(piece.shard, piece.start, piece.stop, piece.limit) for piece in unit.slices]

    for a, b in zip_longest(iter_units(old.dest, old.plan), iter_units(new.dest, new.plan)):
        if a is not None and b is not None and a.slices and held(a) == held(b):
            yield a.number, b.number
        else:
            if a is not None:
                yield a.number, None
            if b is not None:
                yield None, b.number


Pair = tuple[pa.Table | None, pa.Table | None]
# Replaces the shard and key of rows where the join is by other values.
_Name = Callable[[pa.Table], pa.Table] | None


def _image_names(old: FinishedDest, new: FinishedDest) -> tuple[_Name, _Name]:
    """Return what names the rows of each side by image: key is its SHA-256, shard the model if a log has several.

    Raises:
        ConfigError: One side is an output without SHA-256.
    """
    alone = all(side.plan.shards == 1 for side in (old, new) if side.plan.is_log)

    def named(side: FinishedDest) -> _Name:
        model = side.plan.settings.get("model")
        if not side.plan.is_log and CONTENT not in side.schema.names:
            raise ConfigError(
                f"{side.dest.describe()} has no column {CONTENT}, by which a prediction log is compared; label its images "
                "from a list of them (`label LIST.parquet --uri-column COLUMN`)"
            )

        def name(table: pa.Table) -> pa.Table:
            if not side.plan.is_log:
                table = table.set_column(table.schema.get_field_index("key"), "key", table[CONTENT])
                table = table.filter(table["key"].is_valid())  # null: the image could not be fetched
            if alone or not side.plan.is_log:
                shard = pa.array(["" if alone else model] * len(table), pa.string())
                table = table.set_column(table.schema.get_field_index("shard"), "shard", shard)
            return table

        return name

    return named(old), named(new)


def _side_by_side(
    old: FinishedDest, new: FinishedDest, names: tuple[_Name, _Name], a: int | None, b: int | None
) -> Iterator[Pair] | list[Pair]:
    """Return pieces of two units, of equal lengths as long as both have rows; small units are read at once."""
    rows = max(0 if a is None else int(old.rows[a]), 0 if b is None else int(new.rows[b]))
    pairs = _lockstep(_rows(old, a, names[0]), _rows(new, b, names[1]))
    return list(pairs) if rows <= CHUNK_ROWS else pairs


def _lockstep(left: Iterator[pa.Table], right: Iterator[pa.Table]) -> Iterator[Pair]:
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        size = min(len(a), len(b))
        yield a.slice(0, size), b.slice(0, size)
        a = a.slice(size) if len(a) > size else next(left, None)
        b = b.slice(size) if len(b) > size else next(right, None)
    while a is not None or b is not None:
        yield a, b
        a, b = next(left, None), next(right, None)


def _rows(dest: FinishedDest, unit: int | None, name: _Name) -> Iterator[pa.Table]:
    """Yield a unit's rows in pieces, none of them empty."""
    if unit is None:
        return
    part, start = dest.plan.part(unit), 0
    columns = [column for column in (*COLUMNS, *((CONTENT,) if name else ())) if column in dest.schema.names]
    with open_part(dest.dest, part, int(dest.sizes[unit])) as file:
        for batch in pq.ParquetFile(file).iter_batches(CHUNK_ROWS, columns=columns, use_threads=False):
            if batch.num_rows:
                table = pa.Table.from_batches([batch])
                yield _placed(table, unit, start, name)
                start += batch.num_rows


def _placed(table: pa.Table, unit: int, start: int, named: _Name) -> pa.Table:
    rows = np.arange(start, start + len(table))
    table = table.append_column(UNIT, pa.array(np.full(len(table), unit))).append_column(ROW, pa.array(rows))
    table = named(table) if named else table
    for name in set(COLUMNS) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table)))
    return table.select(SCHEMA.names).cast(SCHEMA)


SCHEMA = pa.schema(
    [
        ("shard", pa.string()), ("key", pa.string()), ("label", pa.string()), ("label_id", pa.int32()),
        ("score", pa.float32()), ("status", pa.string()), ("top_ids", pa.list_(pa.int32())),
        (UNIT, pa.int64()), (ROW, pa.int64()),
    ]
)  # fmt: skip


class _Spill:
    """Rows in temporary files, by a hash of their key; in memory as long as they are few."""

    def __init__(self, folder: Path, name: str, partitions: int, stack: ExitStack) -> None:
        self._paths = [folder / f"{name}-{number}.arrow" for number in range(partitions)]
        self._stack = stack
        self._writers: list[pa.RecordBatchStreamWriter] = []
        self._waiting: list[pa.Table] = []
        self._count = 0

    def add(self, table: pa.Table | None) -> None:
        """Add rows."""
        if table is not None:
            self._waiting.append(table)
            self._count += len(table)
            if self._count >= SPILL_ROWS:
                self._write()

    def partitions(self) -> Iterator[pa.Table]:
        """Yield the rows of each file."""
        if not self._writers:
            yield from self._divided()
            return
        self._write()
        for writer, path in zip(self._writers, self._paths, strict=True):
            with _writing():
                writer.close()
            with pa.OSFile(str(path)) as file:
                yield pa.ipc.open_stream(file).read_all()
            path.unlink()

    def _divided(self) -> Iterator[pa.Table]:
        table = pa.concat_tables([SCHEMA.empty_table(), *self._waiting])
        # Python's own hash is the same for both sides, since one process computes both.
        hashes = np.fromiter(map(hash, table["key"].to_pylist()), np.int64, len(table)) % len(self._paths)
        table = table.take(np.argsort(hashes, kind="stable"))
        edges = np.concatenate([[0], np.cumsum(np.bincount(hashes, minlength=len(self._paths)))])
        for start, stop in pairwise(edges):
            yield table.slice(start, stop - start)

    def _write(self) -> None:
        with _writing():
            if not self._writers:
                self._stack.callback(self._close)
                self._writers = [pa.ipc.new_stream(str(path), SCHEMA) for path in self._paths]
            for writer, table in zip(self._writers, self._divided(), strict=True):
                writer.write_table(table)
        self._waiting, self._count = [], 0

    def _close(self) -> None:
        for writer in self._writers:
            with suppress(OSError):  # everything was read already, or another error is being raised
                writer.close()


@contextmanager
def _writing() -> Iterator[None]:
    """Turn disk errors into StorageError."""
    try:
        yield
    except OSError as err:
        folder = tempfile.gettempdir()
        raise StorageError(f"cannot write to {folder}: {reason(err)}; point TMPDIR at a larger disk") from err


def _last(table: pa.Table) -> pa.Table:
    places = table.select(["shard", "key"]).append_column("at", pa.array(np.arange(len(table))))
    return table.take(np.sort(places.group_by(["shard", "key"]).aggregate([("at", "max")])["at_max"].to_numpy()))


def _joined(old: pa.Table, new: pa.Table) -> Joined:
    """Join the rows of one file of each side. Arrow cannot join lists, so it joins their places."""
    left = old.select(["shard", "key"]).append_column("a", pa.array(np.arange(len(old))))
    right = new.select(["shard", "key"]).append_column("b", pa.array(np.arange(len(new))))
    places = left.join(right, ["shard", "key"], join_type="full outer")
    a, b = places["a"], places["b"]
    both = places.filter(pa.compute.and_(a.is_valid(), b.is_valid()))
    return Joined(
        old.take(both["a"]),
        new.take(both["b"]),
        old.take(a.filter(b.is_null())),
        new.take(b.filter(a.is_null())),
    )
