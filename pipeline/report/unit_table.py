"""A few numbers for each finished unit, in arrays: some 30 bytes a unit, for hundreds of thousands of units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import StorageError
from pipeline.dest.commits import Commit, CommitLog, Totals
from pipeline.dest.plan import Plan
from pipeline.sources.unit import part_number
from pipeline.storage.storage import Storage

Float64Array = npt.NDArray[np.float64]
T = TypeVar("T")


class UnitTable:
    """Commit records as arrays of shape (units,), and their sums.

    Args:
        units: Number of units in the plan.

    Attributes:
        done: Whether the unit is finished; if not, the other arrays hold 0.
        rows: Rows in its part file.
        seconds: Seconds that it took.
        bytes_read: Bytes of its input.
        ended: When its part file was written, in seconds since 1970; NaN where unknown.
        totals: Sums over the records.
        skipped: Members that gave no row, by kind.
    """

    def __init__(self, units: int) -> None:
        self.done = np.zeros(units, np.bool_)
        self.rows, self.bytes_read = np.zeros(units, np.int64), np.zeros(units, np.int64)
        self.seconds = np.zeros(units, np.float32)
        self.ended = np.full(units, np.nan)
        self.totals = Totals()
        self.skipped: Counter[str] = Counter()

    def add(self, commit: Commit) -> bool:
        """Add a record; return whether its unit is new. An interrupted merge of records leaves some twice."""
        unit = commit.unit
        if self.done[unit]:
            return False
        self.done[unit] = True
        self.rows[unit] = commit.rows
        self.seconds[unit] = commit.seconds
        self.bytes_read[unit] = commit.bytes_read
        self.totals.add(commit)
        self.skipped.update(commit.skipped)
        return True

    def rates(self) -> Float64Array:
        """Return images per second of each finished unit that has images; shape (n,)."""
        some = self.done & (self.rows > 0) & (self.seconds > 0)
        return np.asarray(self.rows[some] / self.seconds[some], np.float64)

    def images_over_time(self, bins: int) -> tuple[Float64Array, Float64Array] | None:
        """Return (images, edges) of the run's time cut into equal bins, or None where the times are unknown.

        A unit's images are spread evenly over the time that it took. The edges have shape (bins + 1,) and are
        seconds since 1970.
        """
        some = self.done & (self.rows > 0)
        ended, rows = self.ended[some], self.rows[some]
        if not len(ended) or np.isnan(ended).any():
            return None
        took = np.maximum(self.seconds[some], 1e-3).astype(np.float64)
        began = ended - took
        edges = np.linspace(began.min(), ended.max(), bins + 1)
        if edges[-1] - edges[0] < 1:
            return None
        until = [float((rows * np.clip((edge - began) / took, 0, 1)).sum()) for edge in edges]
        return np.diff(until), edges


def iter_new(dest: Storage, plan: Plan, table: UnitTable) -> Iterator[Commit]:
    """Yield each finished unit's record once, after adding it to the table."""
    return (commit for commit in CommitLog.of(dest, plan).records() if table.add(commit))


def add_end_times(dest: Storage, plan: Plan, table: UnitTable) -> None:
    """Fill in when each part file was written, from one listing of DEST."""
    units = {name: unit for unit, name in enumerate(plan.parts)}
    for file in dest.list():
        unit = units.get(file.path) if plan.is_log else part_number(file.path)
        if unit is not None and unit < plan.units and file.modified_s:
            table.ended[unit] = file.modified_s


def while_run_goes_on(look: Callable[[], T]) -> T:
    """Return the result of `look`, which reads commit records. A run in progress may merge them meanwhile: then retry once.

    Raises:
        StorageError: The records, or files that they name, cannot be read.
    """
    try:
        return look()
    except StorageError as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            raise
        return look()
