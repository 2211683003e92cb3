"""Compare SOURCE with a growing plan: which shards are new, and which planned ones have changed or are gone.

The order does not matter: today's listing mixes what was planned last week with what was planned today. The planned
slices are kept as hashes, 24 bytes each. Python's own hash is enough: names with the same hash are compared in full if
they seem to differ, and each process hashes differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from models.errors import SourceError
from pipeline.config import SourceFormat
from pipeline.dest.fingerprint import refuse_changed
from pipeline.dest.plan import Plan, iter_units, read_plan
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import Storage

# Slices that are looked up at a time.
_BATCH = 10_000
# Number of units whose first shard may be opened for its columns.
_LOOKED_INTO = 16
_SHORT = 0xFFFFFFFF


def planned_first(source: Source, dest: Storage) -> Source:
    """Return SOURCE with some planned files first, for choosing Parquet columns by its first files.

    A file that was added later must not change the type of a column of DEST.
    """
    plan = read_plan(dest) if source.format is SourceFormat.PARQUET else None
    if plan is None:
        return source

    def files() -> Iterator[Slice]:
        for unit in islice(iter_units(dest, plan), _LOOKED_INTO):
            piece = unit.slices[0]
            if source.base.stat(piece.shard) is not None:
                yield piece
        yield from source.files()

    return replace(source, files=files)


class PlannedSlices:
    """The slices of a plan, to compare SOURCE with.

    Args:
        dest: Holds the plan.
        plan: DEST's plan.
    """

    def __init__(self, dest: Storage, plan: Plan) -> None:
        self._dest = dest
        self._plan = plan
        names = np.empty(plan.shards, np.int64)
        sizes, etags = np.empty(plan.shards, np.uint32), np.empty(plan.shards, np.uint32)
        for place, (_, piece) in enumerate(self._planned()):
            names[place], sizes[place], etags[place] = _hashes(piece)
        self._order = np.argsort(names)
        self._names = names = names[self._order]
        self._sizes = sizes = sizes[self._order]
        self._etags = etags = etags[self._order]
        self._seen = np.zeros(plan.shards, np.bool_)  # in the plan's order

    def new(self, slices: Iterable[Slice], *, missing_ok: bool = False) -> Iterator[Slice]:
        """Yield the slices that are not planned, in order; at the end, check that all planned ones were seen.

        Args:
            slices: The slices of SOURCE now.
            missing_ok: Whether planned ones may be gone; see `gone`.

        Raises:
            SourceError: A shard has changed or is gone; the message names it.
        """
        iterator = iter(slices)
        while batch := list(islice(iterator, _BATCH)):
            yield from self._unplanned(batch)
        # The parts of a shard share one name, and only one of them is looked up.
        found = self._seen[self._order][np.searchsorted(self._names, self._names)]
        self._seen[self._order] = found
        if not missing_ok and not self._seen.all():
            first = next(self.gone())[1].shard
            others = f", and {more} more" if (more := len(np.unique(self._names[~found])) - 1) else ""
            raise SourceError(
                f"SOURCE is not what was planned: shard {first} is gone{others}; restore what is missing, or give "
                "--missing-ok"
            )

    def gone(self) -> Iterator[tuple[int, Slice]]:
        """Yield planned slices that SOURCE no longer has, with their units' numbers; call it after `new` has ended."""
        if not self._seen.all():
            yield from (found for found, seen in zip(self._planned(), self._seen, strict=True) if not seen)

    def _planned(self) -> Iterator[tuple[int, Slice]]:
        return ((unit.number, piece) for unit in iter_units(self._dest, self._plan) for piece in unit.slices)

    def _unplanned(self, batch: list[Slice]) -> Iterator[Slice]:
        if not len(self._names):
            yield from batch
            return
        names, sizes, etags = (np.array(column) for column in zip(*map(_hashes, batch), strict=True))
        places = np.searchsorted(self._names, names).clip(max=len(self._names) - 1)
        known = self._names[places] == names
        # A listing may have no ETags: then only sizes are compared.
        tags = self._etags[places]
        same = (self._sizes[places] == sizes) & ((tags == etags) | (tags == 0) | (etags == 0))
        self._seen[self._order[places[known]]] = True
        for index in np.flatnonzero(~(known & same)).tolist():
            if known[index]:
                self._refuse_changed(batch[index])
            yield batch[index]

    def _refuse_changed(self, piece: Slice) -> None:
        """Raise if the plan has another version of a slice; it has none if another name has the same hash."""
        for _, old in self._planned():
            if old.shard == piece.shard:
                refuse_changed(piece, old)


def _hashes(piece: Slice) -> tuple[int, int, int]:
    """Return hashes of the shard's name, size, and ETag (0 without); how the shard is cut does not matter."""
    etag = hash(piece.etag) & _SHORT if piece.etag else 0
    return hash(piece.shard), hash(piece.size) & _SHORT, etag
