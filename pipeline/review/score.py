"""What answers say about DEST's labels: how many of each class are right, estimated from the random stratum alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import ConfigError, StorageError
from pipeline.dest.plan import Plan
from pipeline.evaluate.statistics import percent, wilson
from pipeline.evaluate.thresholds import images_needed
from pipeline.report.scan import Counts, count_parts
from pipeline.report.unit_table import UnitTable, iter_new, while_run_goes_on
from pipeline.review.answers import Answers, read_answers
from pipeline.review.classes import Classes
from pipeline.review.draws import Draw, DrawnRow, Stratum, read_draws
from pipeline.review.estimate import Precision, Threshold, overall, threshold
from pipeline.storage.storage import Storage

_Answered = tuple[DrawnRow, bool]  # and whether its label is right


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Estimate for the labels of a class.

    Attributes:
        id: Index of the class.
        name: Name of the class.
        labels: Images in DEST that have it.
        answered: Answered images of its random stratum.
        right: Those of them whose label is right.
        precision: Precision with its interval; None without answers.
        threshold: None where no score reaches the requested precision.
    """

    id: int
    name: str
    labels: int
    answered: int
    right: int
    precision: Precision | None
    threshold: Threshold | None


@dataclass(frozen=True, slots=True)
class ReviewScore:
    """What answers say about a DEST.

    Attributes:
        draws: Numbers of the draws that have answers.
        answered: Images with an answer.
        empty: Lines without an answer.
        random: Answers of the random stratum; all estimates are made from these.
        set_aside: Other answers of the random stratum, which would bias the estimate. They are for images of a stratum
            that two draws share, where the answers to the other draw are missing.
        uncertain: Answers of the uncertain strata; `uncertain_right` of them agree with the label.
        labels: Labelled images in DEST; `covered` of them are of classes with answers.
        precision: Precision over the covered images.
        target: The precision that thresholds are for.
        pooled: The threshold over all classes.
        classes: Every class that occurs.
    """

    draws: list[int]
    answered: int
    empty: int
    random: int
    set_aside: int
    uncertain: int
    uncertain_right: int
    labels: int
    covered: int
    precision: Precision
    target: float
    pooled: Threshold | None
    classes: list[ClassScore]

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`; rates in percent, scores unchanged."""
        values = {**asdict(self), "target": percent(self.target, 1)}
        for one in (values, *values["classes"]):
            found = one["precision"]
            one["precision"] = found and percent(found["value"], 1)
            one["interval"] = found and [percent(found["low"], 1), percent(found["high"], 1)]
        for found in filter(None, (values["pooled"], *(one["threshold"] for one in values["classes"]))):
            found["precision"] = percent(found["precision"], 1)
        return values


def score_answers(dest: Storage, plan: Plan, files: Iterable[Path], target: float) -> ReviewScore:
    """Compare answers with the labels of their images.

    Args:
        dest: Storage of DEST.
        plan: Plan of DEST.
        files: Files with answers, to any draws of DEST.
        target: The precision that thresholds are for, below 1.

    Raises:
        ConfigError: DEST has no draw; the answers cannot be read; or none is of the random stratum.
        StorageError: DEST cannot be read.
    """
    draws, _ = read_draws(dest, plan)
    if not draws:
        raise ConfigError(f"{dest.describe()} has no draw to score; draw one with `shardlabel review sample`")
    classes = Classes.of(dest, plan, [row for draw in draws for row in draw.rows])
    answers = read_answers(files, draws, classes)
    counts = while_run_goes_on(lambda: count_parts(dest, iter_new(dest, plan, UnitTable(plan.units))))
    if counts.unreadable:
        part, why = min(counts.unreadable.items())
        raise StorageError(f"{why}; without {part} the classes' shares are not those of DEST: see `shardlabel verify`")
    return _score(draws, answers, classes, counts, target)


def _score(draws: Sequence[Draw], answers: Answers, classes: Classes, counts: Counts, target: float) -> ReviewScore:
    random: dict[int, list[_Answered]] = {}
    all_random = 0
    for draw in draws:
        at_random: dict[int, list[DrawnRow]] = {}
        for row in draw.rows:
            if row.stratum is Stratum.RANDOM:
                at_random.setdefault(row.label_id, []).append(row)
        for label_id, rows in at_random.items():
            used, available = _usable(rows, answers)
            random.setdefault(label_id, []).extend(used)
            all_random += available
    if not any(random.values()):
        raise ConfigError(_nothing_to_go_by(all_random, len(answers.classes)))
    pooled = threshold(_weighted(random, counts), target)
    scored = []
    for label_id, (label, size) in sorted(counts.labels.items()):
        name = classes.names.get(label_id, label)
        scored.append(_score_class(label_id, name, size, random.get(label_id, []), pooled, target))
    known = [(one.right, one.answered, one.labels) for one in scored if one.answered]
    used_answers = sum(map(len, random.values()))
    others = _only_uncertain(draws, answers)
    return ReviewScore(
        draws=[draw.number for draw in draws if any((r.shard, r.key) in answers.classes for r in draw.shown)],
        answered=len(answers.classes),
        empty=answers.empty,
        random=used_answers,
        set_aside=all_random - used_answers,
        uncertain=len(others),
        uncertain_right=sum(others),
        labels=sum(size for _, size in counts.labels.values()),
        covered=sum(size for *_, size in known),
        precision=overall(known),
        target=target,
        pooled=pooled,
        classes=scored,
    )


def _nothing_to_go_by(random: int, answered: int) -> str:
    if random:
        return (
            f"the {random} random answers do not represent DEST: the other images of their strata are in other draws, and "
            "have no answer here; give the answers of all draws"
        )
    return (
        f"none of the {answered} answers is for an image of the random stratum; answer some of the lines whose stratum is "
        f"{Stratum.RANDOM.value!r}, since the share of right labels is estimated from those alone"
    )


def _usable(rows: Sequence[DrawnRow], answers: Answers) -> tuple[list[_Answered], int]:
    """Return the answers that represent a class's random stratum of one draw, and how many answers there are.

    An earlier draw may have shown part of the stratum for its uncertainty. If more of that part were answered than of the
    other, the sample would be less certain than DEST; if less, more certain. So the same share of both parts is used, each
    in the random order.
    """
    parts, sizes, share = [], [], 1.0
    for is_shown in (True, False):
        part = [row for row in rows if row.is_shown is is_shown]
        truth = [(row, answers.classes.get((row.shard, row.key))) for row in part]
        answered = [(row, true == row.label_id) for row, true in truth if true is not None]
        share = min(share, len(answered) / len(part)) if part else share
        parts.append(answered)
        sizes.append(len(part))
    used = [one for part, size in zip(parts, sizes, strict=True) for one in part[: round(share * size)]]
    return used, sum(map(len, parts))


def _weighted(random: dict[int, list[_Answered]], counts: Counts) -> list[tuple[float, bool, float]]:
    """Return every random answer; its weight is the number of its class's labels that it represents."""
    return [
        (row.score, right, counts.labels.get(label_id, ("", 0))[1] / len(rows))
        for label_id, rows in random.items()
        for row, right in rows
    ]


def _score_class(
    label_id: int, name: str, size: int, rows: list[_Answered], pooled: Threshold | None, target: float
) -> ClassScore:
    right = sum(is_right for _, is_right in rows)
    if len(rows) >= images_needed(target):
        own = threshold([(row.score, is_right, 1.0) for row, is_right in rows], target)
    else:
        own = None if pooled is None else replace(pooled, is_pooled=True)
    precision = Precision(right / len(rows), *wilson(right, len(rows))) if rows else None
    return ClassScore(label_id, name, size, len(rows), right, precision, own)


def _only_uncertain(draws: Iterable[Draw], answers: Answers) -> list[bool]:
    """Return, for each answer to an image that is in no random stratum, whether its label is right."""
    rows = {(row.shard, row.key): row for draw in draws for row in draw.rows if row.stratum is Stratum.UNCERTAIN}
    for row in (row for draw in draws for row in draw.rows if row.stratum is Stratum.RANDOM):
        rows.pop((row.shard, row.key), None)
    return [answers.classes[place] == row.label_id for place, row in rows.items() if place in answers.classes]
