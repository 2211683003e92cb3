"""Records of draws: a Parquet file per draw in DEST, written once under the next number, so no image is drawn twice."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from models.errors import ConfigError, SourceError
from pipeline.dest.plan import STATE_FOLDER, Plan
from pipeline.report.scan import PlacedRow
from pipeline.review.ranking import By
from pipeline.storage.listing import ahead
from pipeline.storage.retries import reason
from pipeline.storage.storage import Storage

REVIEWS_FOLDER = f"{STATE_FOLDER}/reviews"
LOCK_FILE = f"{REVIEWS_FOLDER}/lock"
# Time to wait for another draw that is being recorded.
LOCK_WAIT_S = 60.0
_FILE = re.compile(r"draw-([0-9]{5,})\.parquet")
_METADATA = b"shardlabel.review"
_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("position", pa.int64()),
        ("label_id", pa.int32()),
        ("score", pa.float32()),
        ("stratum", pa.string()),
        ("is_shown", pa.bool_()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("label", pa.string()),
    ]
)


class Stratum(StrEnum):
    """Why an image was drawn. Only the random stratum represents the images that were not drawn."""

    RANDOM = "random"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class DrawnRow(PlacedRow):
    """An image of a draw, with the label that it had then.

    Attributes:
        label_id: The predicted class; `label` is its name, `score` its score.
        stratum: Why it was drawn.
        is_shown: Whether this draw showed it. False if an earlier draw had shown it for its uncertainty, and the random
            order has now reached it: it is in this draw's random stratum too, with its earlier answer.
    """

    label_id: int
    score: float
    stratum: Stratum
    is_shown: bool
    label: str


@dataclass(frozen=True, slots=True)
class Draw:
    """One call of `review sample`.

    Attributes:
        number: Number of the draw, from 1.
        by: Measure that ranked uncertain labels.
        per_class: Requested images per class.
        seed: Seed of its random order.
        plan: The id of the plan then.
        units: Finished units then.
        id: Unique id, so that no two draws have the same bytes.
        rows: By class; in each the random stratum first, then the uncertain one, least certain first.
    """

    number: int
    by: By
    per_class: int
    seed: int
    plan: str
    units: int
    rows: tuple[DrawnRow, ...]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def shown(self) -> list[DrawnRow]:
        """The images that it showed."""
        return [row for row in self.rows if row.is_shown]


def draw_file(number: int) -> str:
    """Return the path of a draw's file below DEST."""
    return f"{REVIEWS_FOLDER}/draw-{number:05d}.parquet"


def read_draws(dest: Storage, plan: Plan) -> tuple[list[Draw], int]:
    """Read every draw of a plan's images.

    Returns:
        (draws, next_number): In order, without draws of a plan that --overwrite removed.

    Raises:
        ConfigError: A draw's file is damaged; the message names it.
    """
    found = (_FILE.fullmatch(file.path.rpartition("/")[2]) for file in dest.list(REVIEWS_FOLDER))
    numbers = sorted(int(match[1]) for match in found if match)
    ids = {plan.id, *plan.earlier}
    draws = [draw for draw in ahead(numbers, lambda number: _read_draw(dest, number)) if draw.plan in ids]
    return draws, max(numbers, default=0) + 1


def record_draw(dest: Storage, draw: Draw) -> bool:
    """Write a draw's file; return False if another draw has taken its number meanwhile.

    Raises:
        SourceError: DEST cannot be written.
        StorageError: Storage failed.
    """
    name = draw_file(draw.number)
    head = {key: value for key, value in asdict(draw).items() if key != "rows"}
    table = pa.Table.from_pylist(
        [asdict(row) for row in draw.rows], _SCHEMA.with_metadata({_METADATA: json.dumps(head)})
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    if not dest.is_local:
        return dest.put_if(name, buffer.getvalue(), None) is not None
    path = Path(dest.path(LOCK_FILE))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=LOCK_WAIT_S, fallback_to_soft=False):
            if dest.stat(name) is not None:
                return False
            dest.write_bytes(name, buffer.getvalue())
    except OSError as err:
        raise SourceError(f"cannot write DEST {dest.describe(name)}, where draws are recorded: {reason(err)}") from err
    return True


def _read_draw(dest: Storage, number: int) -> Draw:
    name = draw_file(number)
    content = dest.read_bytes(name)
    try:
        table = pq.read_table(pa.BufferReader(content))
        head: dict[str, Any] = json.loads(table.schema.metadata[_METADATA])
        drawn = tuple(DrawnRow(**{**row, "stratum": Stratum(row["stratum"])}) for row in table.to_pylist())
        return Draw(**{**head, "by": By(head["by"])}, rows=drawn)
    except (ValueError, TypeError, KeyError, OSError, pa.ArrowException) as err:
        raise ConfigError(
            f"{dest.describe(name)} is damaged, or of a newer version of shardlabel: {' '.join(str(err).split())}; "
            "restore it from a copy, or remove it, but then images of that draw may be drawn again"
        ) from err


def find_draw(draws: Iterable[Draw], number: int) -> Draw:
    """Return a draw by its number.

    Raises:
        ConfigError: There is none; the message lists the draws.
    """
    known = {draw.number: draw for draw in draws}
    if number not in known:
        there = f"draws {', '.join(map(str, known))}" if known else "none yet"
        raise ConfigError(f"--again must be a draw of DEST, got {number}; there are {there}")
    return known[number]
