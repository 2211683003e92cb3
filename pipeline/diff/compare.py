"""`shardlabel diff`: join two DESTs, and report how they differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from models.errors import ConfigError, SourceError
from pipeline.dest.finished import FinishedDest, open_finished
from pipeline.dest.plan import iter_units
from pipeline.diff.difference import Difference, Flip
from pipeline.diff.join import join_rows
from pipeline.report.scan import reach

PairT = TypeVar("PairT")

# Pairs and classes that are listed.
TOP_PAIRS = 20
TOP_CLASSES = 20
SHIFT_BINS = 40
QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class ClassPair:
    """Images whose best label changed from one class to another; without ids where the two number classes differently."""

    old_label: str
    new_label: str
    old_id: int | None
    new_id: int | None
    images: int


@dataclass(frozen=True, slots=True)
class StatusPair:
    """Images by their status in OLD and in NEW."""

    old_status: str
    new_status: str
    images: int


@dataclass(frozen=True, slots=True)
class ClassShift:
    """How the images of one class of OLD changed.

    Attributes:
        label: The class.
        images: Images that have it in OLD, and any label in NEW.
        agreement: Percent of them with the same label in NEW.
        mean_shift: Mean change of their scores, NEW's less OLD's.
    """

    label: str
    images: int
    agreement: float
    mean_shift: float


@dataclass(frozen=True, slots=True)
class DiffReport:
    """How two DESTs differ. Rates in percent, scores from 0 to 1.

    Attributes:
        old: OLD, as it was given.
        new: NEW, as it was given.
        old_model: Model, precision and decode mode.
        rows_old: Rows in OLD; `rows_new` in NEW, `both` in both by shard and key, `only_old` and `only_new` in one only.
        repeats_old: With a prediction log, rows of OLD that a later row of the same image replaces; `repeats_new` in NEW.
        both_labelled: Rows that have a label in both.
        same_label: Those of them with the same best label; `agreement` is their share, `flipped` the others.
        same_top_k: Percent of them whose top k are the same classes; None where they cannot be compared.
        flips: The most frequent pairs of classes, of `flip_pairs` in all.
        statuses: Rows whose status differs.
        score_shift: NEW's best score less OLD's: mean, mean_abs and quantiles (to a ten-thousandth).
        classes: OLD's classes with the most flips.
        only_old_first: The first rows that NEW does not have, as `shard: key`.
        only_new_first: The first rows that OLD does not have.
        compared_by: id, or name where the two number their classes differently.
    """

    old: str
    new: str
    old_model: str
    new_model: str
    rows_old: int
    rows_new: int
    both: int
    only_old: int
    only_new: int
    both_labelled: int
    same_label: int
    agreement: float
    flipped: int
    same_top_k: float | None
    flip_pairs: int
    flips: list[ClassPair] = field(default_factory=list)
    statuses: list[StatusPair] = field(default_factory=list)
    score_shift: dict[str, float] = field(default_factory=dict)
    classes: list[ClassShift] = field(default_factory=list)
    only_old_first: list[str] = field(default_factory=list)
    only_new_first: list[str] = field(default_factory=list)
    compared_by: str = "id"
    repeats_old: int = 0
    repeats_new: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison, with what a page needs beside it.

    Attributes:
        report: The differences.
        shifts: (from, to, images) of bins of the score's shift.
        flips: Examples of each pair of `report.flips`, in that order.
        source: OLD; pictures are read from its SOURCE.
    """

    report: DiffReport
    shifts: list[tuple[float, float, int]]
    flips: list[list[Flip]]
    source: FinishedDest


def compare(old_location: str, new_location: str) -> Compared:
    """Compare two finished DESTs, row by row. Memory does not grow with the rows; temporary files may.

    Raises:
        SourceError: One of them is not a finished DEST, or they have no row in common.
        ConfigError: A plan or a record is damaged.
        StorageError: A part file cannot be read.
    """
    old, new = open_finished(old_location, logs=True), open_finished(new_location, logs=True)
    names = [dest.plan.settings.get("class names") for dest in (old, new)]
    texts = [dest.plan.settings.get("labels") for dest in (old, new)]
    if names[0] != names[1] and None not in texts and texts[0] != texts[1]:
        raise ConfigError(
            f"{old.dest.describe()} writes a class's {texts[0]} as label, and {new.dest.describe()} its {texts[1]}, so no "
            "label would be the same; label both with the same --labels"
        )
    found = Difference(by_name=names[0] != names[1] or names[0] is None, reach=_reach(old))
    for rows in join_rows(old, new):
        found.add(rows)
    if not found.both:
        raise SourceError(
            f"{old.dest.describe()} and {new.dest.describe()} have no row in common by shard and key: they are of different "
            f"images ({_origin(old)} and {_origin(new)}), or SOURCE was named "
            "from another folder"
        )
    flipped = _most({pair: count for pair, count in found.pairs.items() if pair[0] != pair[1]})
    return Compared(
        report=_report(old, new, found, flipped),
        shifts=found.shift_bins(SHIFT_BINS),
        flips=[found.flips.get(pair, []) for pair, _ in flipped[:TOP_PAIRS]],
        source=old,
    )


def _most(counts: dict[PairT, int]) -> list[tuple[PairT, int]]:
    """Return pairs with their counts, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _origin(dest: FinishedDest) -> str:
    return "of a prediction log" if dest.plan.is_log else str(dest.plan.settings.get("source"))


def _reach(old: FinishedDest) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each unit the row before which pictures are read; this bounds the bytes read for a picture."""
    within = np.zeros(old.plan.units, np.int64)
    for unit in iter_units(old.dest, old.plan):
        size = int(old.bytes_read[unit.number]) or unit.size  # a copied unit read nothing
        within[unit.number] = reach(int(old.rows[unit.number]), size)
    return within


def _report(
    old: FinishedDest, new: FinishedDest, found: Difference, flipped: list[tuple[tuple[int, int], int]]
) -> DiffReport:
    both_labelled = found.pairs.total()
    same = both_labelled - sum(count for _, count in flipped)
    ok = max(1, both_labelled)
    label = found.label_names()
    shift = {"mean": sum(found.shifts.values()) / ok, "mean_abs": found.shift_size / ok}
    shift |= {name: found.quantile(share) for name, share in QUANTILES.items()}
    return DiffReport(
        old=old.dest.uri,
        new=new.dest.uri,
        old_model=_model(old),
        new_model=_model(new),
        rows_old=int(old.rows.sum()),
        rows_new=int(new.rows.sum()),
        both=found.both,
        only_old=found.only_old,
        only_new=found.only_new,
        both_labelled=both_labelled,
        same_label=same,
        agreement=round(100 * same / ok, 4),
        flipped=both_labelled - same,
        same_top_k=None if found.same_top is None else round(100 * found.same_top / ok, 4),
        flip_pairs=len(flipped),
        flips=[
            ClassPair(label[a], label[b], None if found.by_name else a, None if found.by_name else b, count)
            for (a, b), count in flipped[:TOP_PAIRS]
        ],
        statuses=[StatusPair(*pair, count) for pair, count in _most(found.statuses) if pair[0] != pair[1]],
        score_shift={name: round(value, 6) for name, value in shift.items()},
        classes=_classes(found, label),
        only_old_first=found.keys_only_old,
        only_new_first=found.keys_only_new,
        compared_by="name" if found.by_name else "id",
        repeats_old=int(old.rows.sum()) - found.both - found.only_old,
        repeats_new=int(new.rows.sum()) - found.both - found.only_new,
    )


def _classes(found: Difference, label: dict[int, str]) -> list[ClassShift]:
    images: Counter[int] = Counter()
    for (own, _), count in found.pairs.items():
        images[own] += count
    flips = _most({own: images[own] - found.pairs[own, own] for own in images})
    return [
        ClassShift(
            label[own],
            images[own],
            round(100 * (images[own] - count) / images[own], 2),
            round(found.shifts[own] / images[own], 4),
        )
        for own, count in flips[:TOP_CLASSES]
        if count
    ]


def _model(dest: FinishedDest) -> str:
    settings = dest.plan.settings
    name = ":".join(str(settings.get(name, "?")) for name in ("model", "precision", "decode"))
    where = settings.get("where")
    return f"{name} (relabelled where {where})" if where else name
