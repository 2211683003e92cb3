"""Terminal output of `review score`: short tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipeline.evaluate.thresholds import images_needed
from pipeline.quantities import count_text, many_text, share_text
from pipeline.review.estimate import Precision, Threshold
from pipeline.review.score import ClassScore, ReviewScore

WORST_CLASSES = 30


def print_score(found: ReviewScore, console: Console) -> None:
    """Print the estimates."""
    console.print(
        f"precision {_percents(found.precision)} of the labels of {share_text(found.covered, found.labels)} of the "
        f"images in DEST, from {many_text(found.random, 'random answer')}",
        soft_wrap=True,
    )
    console.print(_table(found))
    for line in _remarks(found):
        console.print(line, soft_wrap=True)


def _table(found: ReviewScore) -> Table:
    known = sorted((one for one in found.classes if one.precision), key=_worst_first)
    table = Table("class", "images", "right", "precision %", "95 %", f"score for {100 * found.target:g} %",
                  box=None, pad_edge=False)  # fmt: skip
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for one in known[:WORST_CLASSES]:
        assert one.precision is not None
        table.add_row(
            f"{one.id} {one.name}", count_text(one.labels), f"{one.right} of {one.answered}",
            f"{100 * one.precision.value:.1f}", _range(one.precision), _score(one.threshold),
        )  # fmt: skip
    return table


def _worst_first(one: ClassScore) -> tuple[float, int, int]:
    assert one.precision is not None
    return one.precision.high, -one.labels, one.id  # by the upper bound: surely bad, not bad by chance


def _remarks(found: ReviewScore) -> Iterator[str]:
    known = sum(one.precision is not None for one in found.classes)
    if known > WORST_CLASSES:
        yield f"and {known - WORST_CLASSES} better classes; --json has all"
    if known < len(found.classes):
        yield (
            f"{many_text(len(found.classes) - known, 'class', 'classes')} with "
            f"{many_text(found.labels - found.covered, 'image')} have no random answer and are left out"
        )
    target = f"{100 * found.target:g} %"
    if found.pooled is None:
        yield f"no score shows {target} over all classes together: it takes {images_needed(found.target)} answers, all right"
    else:
        yield (
            f"*: for all classes together, where a class has fewer than {images_needed(found.target)} answers. From a score "
            f"on, the answers show {target} with 95 % confidence; -: no score does"
        )
    if found.uncertain:
        yield (
            f"of the uncertain images {found.uncertain_right} of {found.uncertain} are right; they were chosen because they "
            "are uncertain, and are in no figure above"
        )
    if found.set_aside:
        yield (
            f"{many_text(found.set_aside, 'random answer')} not used: part of that random stratum is in another draw, "
            "whose answers are missing; give the answers of all draws"
        )
    if found.empty:
        yield f"{many_text(found.empty, 'image')} without an answer"


def _percents(found: Precision) -> str:
    return f"{100 * found.value:.1f} % ({_range(found)})"


def _range(found: Precision) -> str:
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _score(found: Threshold | None) -> str:
    return "-" if found is None else f"{found.score:.3f}{'*' if found.is_pooled else ''}"
