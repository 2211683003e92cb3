"""Count what the part files of DEST hold, with one row group in memory at a time. Few rows are read whole.

A first pass over four columns gives the counts and the positions of the few rows worth showing; `read_rows` then fetches
those rows. So the keys and error texts of a billion rows are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import StorageError
from pipeline.dest.commits import Commit
from pipeline.dest.finished import metadata_of, open_part
from pipeline.dest.writer import STATUS_OK
from pipeline.sources.unit import part_name
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

SCORE_BINS = 20
# Rows remembered for each status other than ok.
BAD_ROWS = 8
LOWEST_ROWS = 12
# Most bytes of a unit's input that are read to show some of its images; rows after them are not remembered.
REACH_BYTES = 32 * 2**20
# Part files read at a time: each waits on storage more than it computes.
READERS = 4

_COLUMNS = ["label", "label_id", "score", "status"]
_ROW_COLUMNS = ["shard", "key", "label", "score", "status", "error"]

Place = tuple[int, int]  # unit, position of the row in its part file


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row of DEST.

    Attributes:
        unit: Its unit.
        position: Its place in the unit's part file.
        shard: Its sample's shard.
        key: Its sample's key.
    """

    unit: int
    position: int
    shard: str
    key: str

    @property
    def place(self) -> Place:
        """Its unit and position."""
        return self.unit, self.position


@dataclass(frozen=True, slots=True)
class LabelledRow(PlacedRow):
    """A row, with what a reader of the report wants to see."""

    label: str | None
    score: float | None
    status: str
    error: str | None


@dataclass(slots=True)
class Counts:
    """Sums over part files.

    Attributes:
        labels: Name and count of each class that is the best of some image, by class index.
        scores: int64 of shape (SCORE_BINS,): ok rows by score, from 0 to 1.
        score_sum: Sum of those scores.
        bad: The first rows of each status other than ok.
        lowest: (score, unit, position) of the rows with the lowest scores within reach, lowest first.
        versions: Versions of shardlabel that wrote the files.
        metadata: Metadata of the first file.
        unreadable: Reasons, by name, of files that cannot be read.
    """

    labels: dict[int, tuple[str, int]] = field(default_factory=dict)
    scores: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    score_sum: float = 0.0
    bad: dict[str, list[Place]] = field(default_factory=dict)
    lowest: list[tuple[float, int, int]] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add another's counts; the order of the calls does not change the sums and the rows kept."""
        for label_id, (label, count) in other.labels.items():
            self.labels[label_id] = (label, self.labels.get(label_id, (label, 0))[1] + count)
        self.scores += other.scores
        self.score_sum += other.score_sum
        for status, places in other.bad.items():
            self.bad[status] = sorted(self.bad.get(status, []) + places)[:BAD_ROWS]
        self.lowest = sorted(self.lowest + other.lowest)[:LOWEST_ROWS]
        self.versions |= other.versions
        self.metadata = self.metadata or other.metadata
        self.unreadable |= other.unreadable


def reach(rows: int, bytes_read: int) -> int:
    """Return how many rows of a unit, by its mean size, are within the first REACH_BYTES of its input."""
    return rows if bytes_read <= REACH_BYTES else max(1, rows * REACH_BYTES // bytes_read)


def count_parts(dest: Storage, commits: Iterable[Commit]) -> Counts:
    """Count over the part files of these records; a file that cannot be read is noted, and the others count."""
    total = Counts()
    for counts in ahead(commits, lambda commit: _count_part(dest, commit), calls=READERS):
        total.add(counts)
    return total


def _count_part(dest: Storage, commit: Commit) -> Counts:
    try:
        return _count_rows(dest, commit)
    except StorageError as err:
        return Counts(unreadable={commit.part: str(err)})


def _count_rows(dest: Storage, commit: Commit) -> Counts:
    counts = Counts()
    within = reach(commit.rows, commit.bytes_read)
    with open_part(dest, commit.part, commit.size) as source:
        file = pq.ParquetFile(source, read_dictionary=["label", "status"])
        counts.metadata = metadata_of(file.schema_arrow)
        counts.versions = {counts.metadata[key] for key in ("shardlabel.version",) if key in counts.metadata}
        first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=_COLUMNS)
            counts.add(_count_group(table, commit.unit, first, within))
            first += table.num_rows
    return counts


def _count_group(table: Any, unit: int, first: int, within: int) -> Counts:  # noqa: ANN401 (pyarrow has no types)
    """Count one row group; `first` is the position of its first row in the part file."""
    counts = Counts()
    ok = table["label_id"].is_valid().to_numpy()
    ids, where, how_often = np.unique(table["label_id"].drop_null().to_numpy(), return_index=True, return_counts=True)
    names = table["label"].take(np.flatnonzero(ok)[where]).to_pylist()
    counts.labels = {
        int(label_id): (name or "", int(count)) for label_id, name, count in zip(ids, names, how_often, strict=True)
    }
    scores = table["score"].to_numpy()  # null is NaN
    valid = np.flatnonzero(np.isfinite(scores))
    bins = np.clip((scores[valid] * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
    counts.scores = np.bincount(bins, minlength=SCORE_BINS)
    counts.score_sum = float(scores[valid].sum(dtype=np.float64))
    near = valid[: np.searchsorted(valid, within - first)]
    lowest = near[np.argsort(scores[near], kind="stable")[:LOWEST_ROWS]]
    counts.lowest = [(float(scores[i]), unit, first + int(i)) for i in lowest]
    if not ok.all():
        status = table["status"]
        for kind in status.unique().to_pylist():
            if kind != STATUS_OK:
                places = np.flatnonzero(pc.equal(status, kind).to_numpy())[:BAD_ROWS]
                counts.bad[kind] = [(unit, first + int(i)) for i in places]
    return counts


def read_rows(dest: Storage, places: Iterable[Place], part: Callable[[int], str] = part_name) -> Iterator[LabelledRow]:
    """Yield the rows at these places, sorted; a part file that cannot be read gives none.

    Each group of neighbours costs reading one row group.

    Args:
        dest: Storage of DEST.
        places: Places of the rows.
        part: Returns the name of a unit's part file.
    """
    by_unit: dict[int, list[int]] = {}
    for unit, position in sorted(set(places)):
        by_unit.setdefault(unit, []).append(position)
    for unit, positions in by_unit.items():
        with suppress(StorageError):
            yield from _read_rows(dest, part(unit), unit, positions)


def _read_rows(dest: Storage, part: str, unit: int, positions: Sequence[int]) -> list[LabelledRow]:
    rows = []
    with open_part(dest, part) as source:
        file = pq.ParquetFile(source)
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            here = [position - first for position in positions if first <= position < first + size]
            if here:
                table = file.read_row_group(group, columns=_ROW_COLUMNS).take(here)
                rows += [LabelledRow(unit, first + i, **row) for i, row in zip(here, table.to_pylist(), strict=True)]
            first += size
    return rows
