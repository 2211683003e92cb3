"""Counts how two DESTs differ on the same images, as their rows come; memory does not grow with the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.diff.join import ROW, UNIT, Joined
from pipeline.report.scan import PlacedRow

Int64Array = npt.NDArray[np.int64]

# Score shifts are counted in bins of a ten-thousandth, from -1 to 1.
_BINS = 20_000
# Flips that are remembered: for each pair of classes, and in all.
FLIPS_OF_PAIR = 10
FLIPS_KEPT = 20_000
# Rows in one side only whose keys are remembered.
KEYS_KEPT = 10
_PAIR = 2**32


@dataclass(frozen=True, slots=True)
class Flip(PlacedRow):
    """An image of OLD whose best label differs in NEW."""

    old_label: str
    old_score: float
    new_label: str
    new_score: float


class Difference:
    """Counts over joined rows.

    Args:
        by_name: Compare classes by name, because the models number theirs differently; else by number.
        reach: int64 of shape (units of OLD,): flips before this row are remembered, since their pictures can be read.

    Attributes:
        pairs: Images with a label in both, by OLD's class and NEW's.
        shifts: Sum of NEW's score less OLD's, for each class of OLD.
        shift_size: Sum of the absolute shifts, over all images.
        flips: Examples for each pair of different classes.
        statuses: Images by OLD's status and NEW's.
        same_top: Images with the same classes among their top labels; None where those cannot be compared.
        names: Name of each class.
    """

    def __init__(self, *, by_name: bool, reach: Int64Array) -> None:
        self.by_name = by_name
        self._reach = reach
        self._codes: dict[str, int] = {}  # numbers of classes, by name
        self._kept = 0
        self._shift_bins = np.zeros(_BINS + 1, np.int64)
        self.both = self.only_old = self.only_new = 0
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.shifts: dict[int, float] = {}
        self.shift_size = 0.0
        self.flips: dict[tuple[int, int], list[Flip]] = {}
        self.statuses: Counter[tuple[str, str]] = Counter()
        self.same_top: int | None = None if by_name else 0
        self.names: dict[int, str] = {}
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
        statuses = pa.table({"old": rows.old["status"], "new": rows.new["status"]})
        for row in statuses.group_by(["old", "new"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
            self.statuses[row["old"], row["new"]] += row["count_all"]
        ok = rows.old["label"].is_valid().to_numpy() & rows.new["label"].is_valid().to_numpy()
        old, new = (side if ok.all() else side.filter(pa.array(ok)) for side in (rows.old, rows.new))
        if len(old):
            self._add_labels(old, new)

    def _add_labels(self, old: pa.Table, new: pa.Table) -> None:
        a, b = self._classes(old), self._classes(new)
        shift = np.subtract(new["score"].to_numpy(), old["score"].to_numpy(), dtype=np.float64)
        self.shift_size += float(np.abs(shift).sum())
        bins = np.rint((shift + 1) * (_BINS / 2)).astype(np.int64).clip(0, _BINS)
        self._shift_bins += np.bincount(bins, minlength=_BINS + 1)
        codes, which, counts = np.unique(a * _PAIR + b, return_inverse=True, return_counts=True)
        sums = np.bincount(which, shift)
        for code, count, total in zip(codes.tolist(), counts.tolist(), sums.tolist(), strict=True):
            pair = divmod(code, _PAIR)
            self.pairs[pair] += count
            self.shifts[pair[0]] = self.shifts.get(pair[0], 0.0) + total
        self._add_top(old["top_ids"], new["top_ids"])
        flipped = np.flatnonzero(a != b)
        if len(flipped) and self._kept < FLIPS_KEPT:
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
        """Count the rows whose top k are the same classes, in any order."""
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
        near = old[ROW].to_numpy() < self._reach[old[UNIT].to_numpy()]
        for place in np.flatnonzero(near).tolist():
            some = self.flips.setdefault((int(a[place]), int(b[place])), [])
            if len(some) < FLIPS_OF_PAIR and self._kept < FLIPS_KEPT:
                was, now = (side.slice(place, 1).to_pylist()[0] for side in (old, new))
                where = (was[UNIT], was[ROW], was["shard"], was["key"])
                some.append(Flip(*where, was["label"], was["score"], now["label"], now["score"]))
                self._kept += 1

    def label_names(self) -> dict[int, str]:
        """Return the name of each class; with its number where another class has the same name."""
        often = Counter(self.names.values())
        return {number: f"{name} ({number})" if often[name] > 1 else name for number, name in self.names.items()}

    def quantile(self, share: float) -> float:
        """Return the shift that this share of rows does not exceed, to a ten-thousandth."""
        until = np.cumsum(self._shift_bins)
        return round(int(np.searchsorted(until, share * until[-1])) * 2 / _BINS - 1, 4) if until[-1] else 0.0

    def shift_bins(self, bins: int) -> list[tuple[float, float, int]]:
        """Return (from, to, images) of equal bins, from minus to plus the largest shift."""
        filled = np.flatnonzero(self._shift_bins)
        if not len(filled):
            return []
        values = (2 * filled - _BINS) / _BINS
        most = max(np.abs(values).max(), 2 / _BINS)
        counts, edges = np.histogram(values, bins=bins, range=(-most, most), weights=self._shift_bins[filled])
        return [(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def _keep(keys: list[str], rows: pa.Table) -> None:
    for row in rows.slice(0, max(0, KEYS_KEPT - len(keys))).to_pylist():
        keys.append(f"{row['shard']}: {row['key']}")
