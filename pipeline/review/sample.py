"""Draw images: one pass over DEST, two strata of each class, and a record that keeps them from being drawn again.

The pass reads four columns of numbers, one row group at a time, from several parts at once. Keys and names are read only for
drawn rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import ConfigError, SourceError, StorageError
from pipeline.dest.commits import Commit
from pipeline.dest.finished import open_part
from pipeline.dest.plan import Plan
from pipeline.report.scan import READERS, LabelledRow, Place, read_rows
from pipeline.report.unit_table import UnitTable, iter_new, while_run_goes_on
from pipeline.review.draws import Draw, DrawnRow, Stratum, read_draws, record_draw
from pipeline.review.ranking import CANDIDATE, By, Candidates, LowestPerClass, random_order, uncertainty_rank
from pipeline.sources.unit import part_name
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

_Picked = tuple[int, int, int, float, Stratum, bool]  # unit, position, class, score, stratum, is_shown


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to draw.

    Attributes:
        by: Measure that ranks the uncertain stratum.
        per_class: Images per class.
        seed: Seed of the random order.
    """

    by: By
    per_class: int
    seed: int = 0

    @property
    def random(self) -> int:
        """Random images per class: half, rounded up, or all."""
        return self.per_class if self.by is By.RANDOM else (self.per_class + 1) // 2

    @property
    def uncertain(self) -> int:
        """Uncertain images per class that may be needed, since some may also be in the random stratum."""
        return 0 if self.by is By.RANDOM else self.per_class + self.random


@dataclass(slots=True)
class Selection:
    """Result of one pass over DEST.

    Attributes:
        units: Figures of the finished units.
        random: Next rows of each class in the random order. Earlier draws' uncertain rows are among them.
        uncertain: Least certain rows of each class that were not drawn before.
        labelled: How many rows have a label.
    """

    units: UnitTable
    random: LowestPerClass
    uncertain: LowestPerClass
    labelled: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """A new draw, and what to say about it.

    Attributes:
        draw: The draw; it has no rows if nothing was left.
        labelled: Labelled images in DEST.
        unfinished: Units of the plan that have no rows yet.
        behind: Classes whose random stratum does not yet represent a DEST that has grown; see `_behind`.
    """

    draw: Draw
    labelled: int
    unfinished: int
    behind: int


def draw_sample(dest: Storage, plan: Plan, wanted: Wanted) -> Sampled:
    """Draw images that no earlier draw of DEST has shown, and record them there.

    The random stratum of a class takes the next images in the random order, including those that an earlier draw has
    shown for their uncertainty: without these the sample would be more certain than DEST is.

    Raises:
        SourceError: DEST has no labelled image, or cannot be written.
        ConfigError: DEST's state is damaged, or it has too few scores.
        StorageError: A part file cannot be read.
    """
    while True:
        draws, number = read_draws(dest, plan)
        found = while_run_goes_on(lambda draws=draws: _select(dest, plan, wanted, draws))  # type: ignore[misc]
        totals = found.units.totals
        if not found.labelled:
            raise SourceError(f"{dest.describe()} has no labelled image to draw: {totals.rows} rows, none is ok")
        earlier = {row.place for draw in draws for row in draw.rows}
        rows = tuple(_with_keys(dest, list(_divide(found, wanted, earlier))))
        draw = Draw(number, wanted.by, wanted.per_class, wanted.seed, plan.id, totals.units, rows)
        # Another draw that took this number may have drawn the same images.
        if not rows or record_draw(dest, draw):
            behind = _behind(draws, draw, wanted.random)
            return Sampled(draw, found.labelled, plan.units - totals.units, behind)


def _select(dest: Storage, plan: Plan, wanted: Wanted, draws: Sequence[Draw]) -> Selection:
    """Read the finished part files. Memory: the drawn rows, and one row group of each of READERS parts.

    Raises:
        ConfigError: The part files lack the scores to compare.
        StorageError: A part file cannot be read: a sample without it would not represent DEST.
    """
    drawn = _by_unit(row for draw in draws for row in draw.rows)
    random = _by_unit(row for draw in draws for row in draw.rows if row.stratum is Stratum.RANDOM)
    at_random, uncertain = LowestPerClass(wanted.random), LowestPerClass(wanted.uncertain)
    columns = ["label_id", "score", *([] if wanted.by in (By.RANDOM, By.LOW_SCORE) else ["top_scores"])]

    def look(commit: Commit) -> int:
        first = labelled = 0
        with open_part(dest, commit.part, commit.size) as source:
            file = pq.ParquetFile(source)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                rows = _candidates(table, commit.unit, first)
                first += table.num_rows
                labelled += len(rows)
                rows["order"] = random_order(wanted.seed, commit.unit, rows["position"])
                rows["rank"] = rows["order"] / 2.0**64
                at_random.add(rows[~np.isin(rows["position"], random.get(commit.unit, []))])
                if wanted.uncertain:
                    rows["rank"] = uncertainty_rank(wanted.by, _top_scores(table, rows["score"], commit.part))
                    uncertain.add(rows[~np.isin(rows["position"], drawn.get(commit.unit, []))])

        return labelled

    units = UnitTable(plan.units)
    labelled = sum(ahead(iter_new(dest, plan, units), look, calls=READERS))
    return Selection(units, at_random, uncertain, labelled)


def _by_unit(rows: Iterable[DrawnRow]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row.unit, []).append(row.position)
    return found


def _candidates(table: Any, unit: int, first: int) -> Candidates:  # noqa: ANN401 (pyarrow has no types)
    """Return the labelled rows of a row group, not ranked yet; `first` is the position of its first row in the part."""
    ok = np.flatnonzero(table["label_id"].is_valid().to_numpy())
    rows = np.zeros(len(ok), CANDIDATE)
    rows["label_id"] = table["label_id"].drop_null().to_numpy()
    rows["score"] = table["score"].take(ok).to_numpy()
    rows["unit"] = unit
    rows["position"] = first + ok
    return rows


def _top_scores(table: Any, scores: npt.NDArray[np.float32], part: str) -> npt.NDArray[np.float32]:  # noqa: ANN401
    """Return the stored scores of each labelled row; shape (rows, k)."""
    if "top_scores" not in table.column_names:
        return scores[:, None]
    kept = table["top_scores"].filter(table["label_id"].is_valid())
    lengths = pc.unique(pc.list_value_length(kept)).to_pylist()
    if not len(scores):
        return np.ones((0, 2), np.float32)
    if len(lengths) != 1 or not lengths[0]:
        raise ConfigError(
            f"{part}: its rows keep different numbers of scores ({lengths}), which cannot be compared; give --by low-score"
        )
    return np.asarray(pc.list_flatten(kept).to_numpy(), np.float32).reshape(len(scores), lengths[0])


def _divide(found: Selection, wanted: Wanted, earlier: set[Place]) -> Iterator[_Picked]:
    """Yield the drawn rows: of each class the random stratum, then the least certain others up to per_class."""
    random, uncertain = _by_class(found.random.rows()), _by_class(found.uncertain.rows())
    for label_id in sorted(random.keys() | uncertain.keys()):
        taken, shown = set(), 0
        for _, _, _, unit, position, score in random.get(label_id, ()):
            is_shown = (unit, position) not in earlier
            taken.add((unit, position))
            shown += is_shown
            yield unit, position, label_id, score, Stratum.RANDOM, is_shown
        others = (row for row in uncertain.get(label_id, ()) if (row[3], row[4]) not in taken)
        for (_, _, _, unit, position, score), _ in zip(others, range(wanted.per_class - shown), strict=False):
            yield unit, position, label_id, score, Stratum.UNCERTAIN, True


def _by_class(rows: Candidates) -> dict[int, list[tuple[int, float, int, int, int, float]]]:
    """Return rows, which are sorted by class, as tuples of their fields, by class."""
    classes, first = np.unique(rows["label_id"], return_index=True)
    return {int(label_id): part.tolist() for label_id, part in zip(classes, np.split(rows, first[1:]), strict=False)}


def _with_keys(dest: Storage, picked: list[_Picked]) -> Iterator[DrawnRow]:
    """Yield the drawn rows with shard, key and label, by reading their row groups.

    Raises:
        StorageError: A part file cannot be read.
    """
    by_unit: dict[int, list[Place]] = {}
    for unit, position, *_ in picked:
        by_unit.setdefault(unit, []).append((unit, position))
    found: dict[Place, LabelledRow] = {}
    for rows in ahead(sorted(by_unit.items()), lambda item: list(read_rows(dest, item[1])), calls=READERS):
        found.update((row.place, row) for row in rows)
    for unit, position, label_id, score, stratum, is_shown in picked:
        row = found.get((unit, position))
        if row is None:
            raise StorageError(f"cannot read {dest.describe(part_name(unit))}; `shardlabel verify` says what is wrong")
        yield DrawnRow(unit, position, row.shard, row.key, label_id, score, stratum, is_shown, row.label or "")


def _behind(draws: Sequence[Draw], draw: Draw, count: int) -> int:
    """Count the classes of a DEST that has grown whose random rows end, in the random order, before earlier draws' rows.

    If nothing was added, the random strata of all draws are one sample, whatever their seeds. If DEST has grown, they are
    one sample again once the order of one seed has been followed among the new rows as far as it was before.
    """
    if all(earlier.units == draw.units for earlier in draws):
        return 0
    new = _last_in_order([draw], draw.seed)
    if any(earlier.seed != draw.seed for earlier in draws):
        return len(new)
    before = _last_in_order(draws, draw.seed)
    return sum(rows == count and last < before.get(label_id, (0, 0))[0] for label_id, (last, rows) in new.items())


def _last_in_order(draws: Sequence[Draw], seed: int) -> dict[int, tuple[int, int]]:
    """Return for each class the last place of its random stratum in the random order, and its number of rows."""
    found: dict[int, tuple[int, int]] = {}
    for row in (row for draw in draws for row in draw.rows if row.stratum is Stratum.RANDOM):
        place = int(random_order(seed, row.unit, np.array([row.position]))[0])
        last, rows = found.get(row.label_id, (0, 0))
        found[row.label_id] = (max(last, place), rows + 1)
    return found
