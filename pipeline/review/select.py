"""One pass over the part files of DEST: the rows of each class that come first in either order, and how many there are.

Four columns of numbers are read, a row group at a time, of several parts at once; keys and names only of what is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import ConfigError
from pipeline.dest.commits import Commit
from pipeline.report.scan import open_part
from pipeline.review.draws import Earlier
from pipeline.review.ranking import CANDIDATE, By, Candidates, LowestPerClass, random_order, uncertainty_rank
from pipeline.storage.listing import ahead
from pipeline.storage.retries import retried
from pipeline.storage.storage import Storage

# Part files read at a time: each waits on storage more than it computes.
READERS = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to draw.

    Attributes:
        by: What ranks the uncertain stratum.
        per_class: Images per class.
        seed: Of the random order.
    """

    by: By
    per_class: int
    seed: int = 0

    @property
    def random(self) -> int:
        """Images per class that are drawn at random: half, the odd one included, or all."""
        return self.per_class if self.by is By.RANDOM else (self.per_class + 1) // 2

    @property
    def uncertain(self) -> int:
        """Uncertain images per class that may be needed: some may turn out to be drawn at random as well."""
        return 0 if self.by is By.RANDOM else self.per_class + self.random


@dataclass(slots=True)
class Selection:
    """What one pass found.

    Attributes:
        random: Rows of each class that come next in the random order. Earlier draws' uncertain rows are among them.
        uncertain: Rows of each class that are least sure, and were not drawn before.
        rows: Labelled rows of each class.
    """

    random: LowestPerClass
    uncertain: LowestPerClass
    rows: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, wanted: Wanted) -> Selection:
        """Return an empty one."""
        return cls(LowestPerClass(wanted.random), LowestPerClass(wanted.uncertain))

    def fork(self) -> Selection:
        """Return an empty one for a thread to fill."""
        return Selection(self.random.fork(), self.uncertain.fork())

    def add(self, other: Selection) -> None:
        """Take in what another found."""
        self.random.add(other.random.rows())
        self.uncertain.add(other.uncertain.rows())
        self.rows += other.rows


def select(dest: Storage, commits: Iterable[Commit], wanted: Wanted, earlier: Earlier) -> Selection:
    """Look through the part files of these records.

    Memory: what is drawn, three times over, and a row group of READERS parts; it does not grow with the rows of DEST.

    Raises:
        ConfigError: The part files do not keep the scores that are to be compared.
        StorageError: A part file cannot be read: a sample of the others would not be one of DEST.
    """
    found = Selection.of(wanted)

    def look(commit: Commit) -> Selection:
        return retried(f"read {dest.describe(commit.part)}", lambda: _look(dest, commit, wanted, earlier, found.fork()))

    for one in ahead(commits, look, calls=READERS):
        found.add(one)
    return found


def _look(dest: Storage, commit: Commit, wanted: Wanted, earlier: Earlier, found: Selection) -> Selection:
    drawn, random = earlier.drawn(commit.unit), earlier.random(commit.unit)
    columns = ["label_id", "score", *([] if wanted.by in (By.RANDOM, By.LOW_SCORE) else ["top_scores"])]
    first = 0
    with open_part(dest, commit.part, commit.size) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            rows = _candidates(table, commit.unit, first)
            first += table.num_rows
            classes, counts = np.unique(rows["label_id"], return_counts=True)
            found.rows.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
            rows["order"] = random_order(wanted.seed, commit.unit, rows["position"])
            rows["rank"] = rows["order"] / 2.0**64
            found.random.add(rows[~np.isin(rows["position"], random)])
            if wanted.uncertain:
                rows["rank"] = uncertainty_rank(wanted.by, _top_scores(table, rows["score"], commit.part))
                found.uncertain.add(rows[~np.isin(rows["position"], drawn)])
    return found


def _candidates(table: Any, unit: int, first: int) -> Candidates:  # noqa: ANN401 (pyarrow has no types)
    """Return the labelled rows of a row group whose first row is number `first` of its part; not ranked yet."""
    ok = np.flatnonzero(table["label_id"].is_valid().to_numpy())
    rows = np.zeros(len(ok), CANDIDATE)
    rows["label_id"] = table["label_id"].drop_null().to_numpy()
    rows["score"] = table["score"].take(ok).to_numpy()
    rows["unit"] = unit
    rows["position"] = first + ok
    return rows


def _top_scores(table: Any, scores: npt.NDArray[np.float32], part: str) -> npt.NDArray[np.float32]:  # noqa: ANN401
    """Return the scores that are kept of each labelled row; shape (rows, k)."""
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
