"""Choose samples of a run that are worth a look, and fetch thumbnails of them from SOURCE.

The choice depends only on the run. Its cost is bounded: it reads the first bytes of a few units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest

import numpy as np

from pipeline.dest.plan import Plan
from pipeline.dest.writer import STATUS_OK
from pipeline.report.pictures import read_thumbnails
from pipeline.report.scan import Counts, LabelledRow, Place, reach, read_rows
from pipeline.report.unit_table import UnitTable
from pipeline.storage.storage import Storage

SHEET_SIZE = 96
SHEET_UNITS = 8
SHEET_BAD = 16


class Group(StrEnum):
    """Why a sample is on the sheet."""

    ACROSS = "across"
    LOWEST = "lowest"
    BAD = "bad"


@dataclass(slots=True)
class ContactSheet:
    """Samples by group, in order, with their pictures.

    Attributes:
        groups: Rows of each group.
        thumbnails: JPEG by (unit, position), for each picture that could be read.
        problems: Why pictures are missing, a sentence each.
    """

    groups: dict[Group, list[LabelledRow]]
    thumbnails: dict[Place, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def build_sheet(dest: Storage, plan: Plan, units: UnitTable, counts: Counts) -> ContactSheet:
    """Choose rows, and fetch their pictures as far as possible.

    The rows are some that are spread over the run, those with the lowest scores, and some of each status other than ok.
    """
    # In a small run the lowest would be most of the rows, so they are at most a quarter.
    lowest = [(unit, position) for _, unit, position in counts.lowest][: max(1, int(counts.scores.sum()) // 4)]
    bad = _in_turn(counts.bad, SHEET_BAD)
    across = _spread(units, SHEET_SIZE - len(lowest) - len(bad), skip={*lowest, *bad})
    rows = {row.place: row for row in read_rows(dest, [*lowest, *bad, *across], plan.part)}
    groups = {Group.ACROSS: across, Group.LOWEST: lowest, Group.BAD: bad}
    sheet = ContactSheet({group: [rows[one] for one in places if one in rows] for group, places in groups.items()})
    sheet.groups[Group.ACROSS] = [row for row in sheet.groups[Group.ACROSS] if row.status == STATUS_OK]
    pictured = [*sheet.groups[Group.ACROSS], *sheet.groups[Group.LOWEST]]
    sheet.thumbnails, sheet.problems = read_thumbnails(dest, plan, counts.metadata, pictured)
    return sheet


def _in_turn(places: dict[str, list[Place]], count: int) -> list[Place]:
    """Take one of each status, then a second of each, and so on."""
    turns = zip_longest(*(some for _, some in sorted(places.items())))
    return [place for turn in turns for place in turn if place is not None][:count]


def _spread(units: UnitTable, count: int, *, skip: set[Place]) -> list[Place]:
    """Return `count` places spread evenly over SHEET_UNITS units, and in each over the rows within reach."""
    filled = np.flatnonzero(units.done & (units.rows > 0))
    if not len(filled):
        return []
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, min(SHEET_UNITS, len(filled))).round().astype(int))]
    places: list[Place] = []
    for index, unit in enumerate(chosen.tolist()):
        share = (count - len(places)) // (len(chosen) - index)
        within = reach(int(units.rows[unit]), int(units.bytes_read[unit]))
        taken = {position for other, position in skip if other == unit}
        # Extra places make up for those already taken, so that a small unit gives all its rows.
        even = np.unique(np.linspace(0, within, share + len(taken), endpoint=False).astype(int)).tolist()
        places += [(unit, position) for position in even if position not in taken][:share]
    return places
