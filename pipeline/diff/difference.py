"""What two DESTs say of the same images, counted as their rows come; memory does not grow with the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.diff.join import ROW, UNIT, Joined

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Shifts are counted in bins of a ten-thousandth, from -1 to 1.
_BINS = 20_000
# Flips that are remembered: of each pair of classes, and in all.
FLIPS_OF_PAIR = 10
FLIPS_KEPT = 20_000
# Rows of one side alone whose keys are remembered.
KEYS_KEPT = 10
_PAIR = 2**32


@dataclass(frozen=True, slots=True)
class Flip:
    """An image whose best label is another one in NEW.

    Attributes:
        unit: Its unit in OLD.
        row: Its row there.
    """

    unit: int
    row: int
    shard: str
    key: str
    old_label: str
    old_score: float
    new_label: str
    new_score: float

    @property
    def place(self) -> tuple[int, int]:
        """Its unit and row."""
        return self.unit, self.row


@dataclass(slots=True)
class ClassCounts:
    """Of the images of which both have a label, by OLD's class; arrays grow with the largest class.

    Attributes:
        images: How many.
        same: Of which NEW says the same.
        shift: Sum of NEW's score less OLD's.
    """

    images: Float64Array = field(default_factory=lambda: np.zeros(0))
    same: Float64Array = field(default_factory=lambda: np.zeros(0))
    shift: Float64Array = field(default_factory=lambda: np.zeros(0))

    def add(self, classes: Int64Array, same: BoolArray, shift: Float64Array) -> None:
        """Count rows."""
        size = max(len(self.images), int(classes.max(initial=-1)) + 1)
        for name, weights in (("images", None), ("same", same), ("shift", shift)):
            before = np.pad(getattr(self, name), (0, size - len(getattr(self, name))))
            setattr(self, name, before + np.bincount(classes, weights, minlength=size))


class Difference:
    """Counts over joined rows.

    Args:
        by_name: Classes are compared by name, as the models number theirs differently; else by number.
        reach: int64 of shape (units of OLD,): rows before which flips are remembered, since their pictures can be had.
    """

    def __init__(self, *, by_name: bool, reach: Int64Array) -> None:
        self.by_name = by_name
        self._reach = reach
        self._codes: dict[str, int] = {}  # of classes by name
        self._kept = 0
        self.names: dict[int, str] = {}
        self.both = self.both_ok = self.same = self.only_old = self.only_new = 0
        self.same_top: int | None = None if by_name else 0
        self.pairs: dict[tuple[int, int], int] = {}
        self.flips: dict[tuple[int, int], list[Flip]] = {}
        self.statuses: dict[tuple[str, str], int] = {}
        self.classes = ClassCounts()
        self.shift_sum = self.shift_size = 0.0
        self.shifts = np.zeros(_BINS + 1, np.int64)
        self.keys_only_old: list[str] = []
        self.keys_only_new: list[str] = []

    def add(self, rows: Joined) -> None:
        """Count rows."""
        self.only_old += len(rows.only_old)
        self.only_new += len(rows.only_new)
        _keep(self.keys_only_old, rows.only_old)
        _keep(self.keys_only_new, rows.only_new)
        self.both += len(rows.old)
        if not len(rows.old):
            return
        self._add_statuses(rows)
        ok = rows.old["label"].is_valid().to_numpy() & rows.new["label"].is_valid().to_numpy()
        old, new = (side if ok.all() else side.filter(pa.array(ok)) for side in (rows.old, rows.new))
        if len(old):
            self._add_labels(old, new)

    def _add_statuses(self, rows: Joined) -> None:
        pairs = pa.table({"old": rows.old["status"], "new": rows.new["status"]})
        for row in pairs.group_by(["old", "new"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
            key = (row["old"], row["new"])
            self.statuses[key] = self.statuses.get(key, 0) + row["count_all"]

    def _add_labels(self, old: pa.Table, new: pa.Table) -> None:
        a, b = self._classes(old), self._classes(new)
        before, after = (np.asarray(side["score"].to_numpy(), np.float64) for side in (old, new))
        same, shift = a == b, after - before
        self.both_ok += len(old)
        self.same += int(same.sum())
        self.shift_sum += float(shift.sum())
        self.shift_size += float(np.abs(shift).sum())
        self.shifts += np.bincount(
            np.rint((shift + 1) * (_BINS / 2)).astype(np.int64).clip(0, _BINS), minlength=_BINS + 1
        )
        self.classes.add(a, same, shift)
        self._add_top(old["top_ids"], new["top_ids"])
        if not same.all():
            flipped = np.flatnonzero(~same)
            codes, counts = np.unique(a[flipped] * _PAIR + b[flipped], return_counts=True)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
                pair = divmod(code, _PAIR)
                self.pairs[pair] = self.pairs.get(pair, 0) + count
            self._remember(old.take(flipped), new.take(flipped), a[flipped], b[flipped])

    def _classes(self, table: pa.Table) -> Int64Array:
        """Return a number for the class of each row, and remember its name."""
        if self.by_name:
            labels = table["label"].combine_chunks().dictionary_encode()
            labels = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
            codes = [self._codes.setdefault(name, len(self._codes)) for name in labels.dictionary.to_pylist()]
            self.names |= zip(codes, labels.dictionary.to_pylist(), strict=True)
            return np.asarray(np.asarray(codes, np.int64)[labels.indices.to_numpy()], np.int64)
        ids = np.asarray(table["label_id"].to_numpy(), np.int64)
        found, first = np.unique(ids, return_index=True)
        for number, place in zip(found.tolist(), first.tolist(), strict=True):
            if number not in self.names:
                self.names[number] = table["label"][place].as_py()
        return ids

    def _add_top(self, old: pa.ChunkedArray, new: pa.ChunkedArray) -> None:
        """Count the rows whose top k are the same classes, in whatever order."""
        if self.same_top is None:
            return
        sides = [np.concatenate([chunk.flatten().to_numpy() for chunk in side.chunks]) for side in (old, new)]
        sizes = {len(side) for side in sides}
        size = sizes.pop()
        if sizes or not size or size % len(old):
            self.same_top = None  # they keep different numbers of labels
            return
        a, b = (np.sort(side.reshape(len(old), -1), axis=1) for side in sides)
        self.same_top += int((a == b).all(axis=1).sum())

    def _remember(self, old: pa.Table, new: pa.Table, a: Int64Array, b: Int64Array) -> None:
        """Keep some flips of each pair."""
        if self._kept >= FLIPS_KEPT:
            return
        units, rows = old[UNIT].to_numpy(), old[ROW].to_numpy()
        for place in np.flatnonzero(rows < self._reach[units]).tolist():
            some = self.flips.setdefault((int(a[place]), int(b[place])), [])
            if len(some) < FLIPS_OF_PAIR and self._kept < FLIPS_KEPT:
                was, now = (side.slice(place, 1).to_pylist()[0] for side in (old, new))
                some.append(
                    Flip(
                        was[UNIT], was[ROW], was["shard"], was["key"],
                        was["label"], was["score"], now["label"], now["score"],
                    )
                )  # fmt: skip
                self._kept += 1

    def label_names(self) -> dict[int, str]:
        """Return what each class is called; with its number where another one is called so too."""
        often = Counter(self.names.values())
        return {number: f"{name} ({number})" if often[name] > 1 else name for number, name in self.names.items()}

    def quantile(self, share: float) -> float:
        """Return the shift that this share of rows does not exceed, to a ten-thousandth."""
        if not self.both_ok:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.shifts), share * self.both_ok))
        return round(place * 2 / _BINS - 1, 4)

    def shift_bins(self, bins: int) -> list[tuple[float, float, int]]:
        """Return (from, to, images) of equal bins between the smallest and the largest shift."""
        filled = np.flatnonzero(self.shifts)
        if not len(filled):
            return []
        most = max(abs(2 * int(filled[0]) - _BINS), abs(2 * int(filled[-1]) - _BINS), 2) / _BINS
        values = (2 * filled - _BINS) / _BINS
        counts, edges = np.histogram(values, bins=bins, range=(-most, most), weights=self.shifts[filled])
        return [(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def _keep(keys: list[str], rows: pa.Table) -> None:
    """Remember some rows by shard and key."""
    for row in rows.slice(0, max(0, KEYS_KEPT - len(keys))).to_pylist():
        keys.append(f"{row['shard']}: {row['key']}")
