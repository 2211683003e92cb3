"""Draw images: one pass over DEST, two strata of each class, and a record that keeps them from being drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from models.errors import SourceError, StorageError
from pipeline.dest.plan import Plan
from pipeline.report.scan import LabelledRow, Place, read_rows
from pipeline.report.unit_table import UnitTable, iter_new
from pipeline.review.draws import Draw, DrawnRow, Earlier, Stratum, read_draws, record_draw
from pipeline.review.ranking import Candidates, random_order
from pipeline.review.select import READERS, Selection, Wanted, select
from pipeline.sources.unit import part_name
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

T = TypeVar("T")

_Picked = tuple[int, int, int, float, Stratum, bool]  # unit, position, class, score, stratum, is_shown


@dataclass(frozen=True, slots=True)
class Sampled:
    """A new draw, and what there is to say about it.

    Attributes:
        draw: What was drawn; without rows where nothing was left.
        labelled: Labelled images in DEST.
        unfinished: Units of the plan that have no rows yet.
        behind: Classes whose random stratum does not yet stand for all of a DEST that has grown; see `_behind`.
    """

    draw: Draw
    labelled: int
    unfinished: int
    behind: int


def draw_sample(dest: Storage, plan: Plan, wanted: Wanted) -> Sampled:
    """Draw images that no earlier draw of DEST has given out, and record them there.

    The random stratum of a class takes the next images in the random order, among them such as an earlier draw has
    given out for their uncertainty: leaving these out would leave a sample that is surer than DEST is.

    Raises:
        SourceError: DEST has no labelled image, or cannot be written.
        ConfigError: DEST's state is damaged, or keeps too few scores.
        StorageError: A part file cannot be read.
    """
    while True:
        draws, number = read_draws(dest, plan)
        earlier = Earlier(draws)
        found, units = while_run_goes_on(partial(_look_through, dest, plan, wanted, earlier))
        if not found.rows:
            raise SourceError(f"{dest.describe()} has no labelled image to draw: {units.totals.rows} rows, none is ok")
        rows = tuple(_with_keys(dest, list(_divide(found, wanted, earlier))))
        finished = units.totals.units
        draw = Draw(number, wanted.by, wanted.per_class, wanted.seed, plan.id, finished, rows)
        # Another draw that took the number may have drawn the same images.
        if not rows or record_draw(dest, draw):
            behind = _behind(draws, draw, wanted.random)
            return Sampled(draw, found.rows.total(), plan.units - finished, behind)


def while_run_goes_on(look: Callable[[], T]) -> T:
    """Return what look returns, which reads commit records: a run that goes on may merge them meanwhile; then again.

    Raises:
        StorageError: They, or what they name, cannot be read.
    """
    try:
        return look()
    except StorageError as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            raise
        return look()


def _look_through(dest: Storage, plan: Plan, wanted: Wanted, earlier: Earlier) -> tuple[Selection, UnitTable]:
    units = UnitTable.empty(plan.units)
    return select(dest, iter_new(dest, plan, units), wanted, earlier), units


def _divide(found: Selection, wanted: Wanted, earlier: Earlier) -> Iterator[_Picked]:
    """Yield what is drawn: of each class the random stratum, then the least sure of the others up to per_class."""
    random, uncertain = _by_class(found.random.rows()), _by_class(found.uncertain.rows())
    for label_id in sorted(random.keys() | uncertain.keys()):
        taken, shown = set(), 0
        for _, _, _, unit, position, score in random.get(label_id, ()):
            is_shown = not earlier.was_drawn(unit, position)
            taken.add((unit, position))
            shown += is_shown
            yield unit, position, label_id, score, Stratum.RANDOM, is_shown
        others = (row for row in uncertain.get(label_id, ()) if (row[3], row[4]) not in taken)
        for (_, _, _, unit, position, score), _ in zip(others, range(wanted.per_class - shown), strict=False):
            yield unit, position, label_id, score, Stratum.UNCERTAIN, True


def _by_class(rows: Candidates) -> dict[int, list[tuple[int, float, int, int, int, float]]]:
    """Return rows, which are sorted by class, as tuples of their fields."""
    classes, first = np.unique(rows["label_id"], return_index=True)
    return {int(label_id): part.tolist() for label_id, part in zip(classes, np.split(rows, first[1:]), strict=False)}


def _with_keys(dest: Storage, picked: list[_Picked]) -> Iterator[DrawnRow]:
    """Yield what is drawn with shard, key and label, for which its row groups are read.

    Raises:
        StorageError: A part file cannot be read.
    """
    by_unit: dict[int, list[Place]] = {}
    for unit, position, *_ in picked:
        by_unit.setdefault(unit, []).append((unit, position))
    found: dict[Place, LabelledRow] = {}
    for rows in ahead(sorted(by_unit.items()), lambda item: list(read_rows(dest, item[1])), calls=READERS):
        found.update(((row.unit, row.position), row) for row in rows)
    for unit, position, label_id, score, stratum, is_shown in picked:
        row = found.get((unit, position))
        if row is None:
            raise StorageError(f"cannot read {dest.describe(part_name(unit))}; `shardlabel verify` says what is wrong")
        yield DrawnRow(unit, position, label_id, score, stratum, is_shown, row.shard, row.key, row.label or "")


def _behind(draws: Sequence[Draw], draw: Draw, count: int) -> int:
    """Count the classes of which a DEST that has grown since earlier draws has random rows that come before theirs.

    Where nothing was added the random strata of all draws are one sample, whatever their seeds. Where DEST has grown
    they are one again as soon as the order of one seed has been followed, among what is new, as far as it was before.
    """
    if all(earlier.units == draw.units for earlier in draws):
        return 0
    new = _last_in_order([draw], draw.seed)
    if any(earlier.seed != draw.seed for earlier in draws):
        return len(new)
    before = _last_in_order(draws, draw.seed)
    return sum(rows == count and last < before.get(label_id, (0, 0))[0] for label_id, (last, rows) in new.items())


def _last_in_order(draws: Sequence[Draw], seed: int) -> dict[int, tuple[int, int]]:
    """Return of each class the highest place that a random stratum reaches in the random order, and its rows."""
    found: dict[int, tuple[int, int]] = {}
    for row in (row for draw in draws for row in draw.rows if row.stratum is Stratum.RANDOM):
        place = int(random_order(seed, row.unit, np.array([row.position]))[0])
        last, rows = found.get(row.label_id, (0, 0))
        found[row.label_id] = (max(last, place), rows + 1)
    return found
