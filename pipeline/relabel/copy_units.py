"""Finds the units of OLD with rows to label again, and copies the others: without Ray, several at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from models.errors import StorageError
from pipeline.dest.commits import Commit
from pipeline.dest.finished import FinishedDest
from pipeline.dest.merge import Relabelling
from pipeline.dest.plan import iter_units
from pipeline.operators.stages import UnitNotes, UnitSettings, open_writer, publish_file
from pipeline.sources.unit import Unit, part_name
from pipeline.storage.listing import CALLS_AHEAD, ahead

# Part files on a local disk that are processed at a time; a remote storage has more, since most of the time is waiting.
LOCAL_PARTS = 3


def matching_rows(old: FinishedDest, relabelling: Relabelling, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count the rows to label again in each unit; reads only the columns that the condition names.

    Args:
        old: OLD.
        relabelling: Which rows to label again.
        wanted: bool of shape (units,): which units to look at.

    Returns:
        int64 of shape (units,); 0 for units that were not looked at.

    Raises:
        StorageError: A part file cannot be read, or does not match OLD's record.
    """

    def count(unit: int) -> tuple[int, int]:
        found = relabelling.wanted(part_name(unit), int(old.sizes[unit]))
        if len(found) != old.rows[unit]:
            raise StorageError(
                f"{old.dest.describe(part_name(unit))} holds {len(found)} rows, its commit record says {old.rows[unit]}; "
                "`shardlabel verify` lists everything that is wrong there"
            )
        return unit, int(found.sum())

    counts = np.zeros(old.plan.units, np.int64)
    for unit, found in ahead(map(int, np.flatnonzero(wanted)), count, calls=_calls(old)):
        counts[unit] = found
    return counts


def copy_units(
    settings: UnitSettings, old: FinishedDest, wanted: npt.NDArray[np.bool_], is_stopped: Callable[[], bool]
) -> Iterator[Commit]:
    """Copy units of OLD, and yield the commit record of each as it is published.

    Args:
        settings: Settings for labelling.
        old: OLD.
        wanted: bool of shape (units,): which units to copy.
        is_stopped: Asked before each unit; units in progress are finished.
    """
    relabelling = settings.relabelling
    assert relabelling is not None

    def copy(unit: Unit) -> Commit:
        started = time.perf_counter()
        empty = open_writer(settings, unit)
        writer = relabelling.merge(unit.part, empty.schema, None, empty.path)
        notes = UnitNotes(**json.loads(old.notes.get(unit.number, "{}")))
        return publish_file(settings, unit, writer, notes, started)

    units = (unit for unit in iter_units(old.dest, old.plan) if wanted[unit.number])
    yield from ahead(takewhile(lambda _: not is_stopped(), units), copy, calls=_calls(old))


def _calls(old: FinishedDest) -> int:
    return LOCAL_PARTS if old.dest.is_local else CALLS_AHEAD
