"""Output of `evaluate`: short tables for a terminal, and a page with plots in one HTML file."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from models.calibration import ClassThreshold
from pipeline.evaluate.fit import Fit
from pipeline.evaluate.results import Accepted, ClassAccuracy, Comparison, Evaluation
from pipeline.evaluate.statistics import CALIBRATION_BINS
from pipeline.html import pages
from pipeline.quantities import count_text

WORST_CLASSES = 10
WORST_PAIRS = 10
CHANGED = 10
# Rows on the page.
CLASSES = 60


def print_evaluation(found: Evaluation, console: Console) -> None:
    """Print one evaluation."""
    _say(console, [f"{found.name}: {count_text(found.images)} images"])
    console.print(_accuracy((found,)))
    _say(console, _remarks(found))
    if found.fit is not None:
        print_fit(found.fit, console)
    if worst := _worst(found)[:WORST_CLASSES]:
        table = _table(f"Worst of {len(found.per_class)} classes", "class", "images", "top-1 %", "top-5 %")
        for one, _ in worst:
            table.add_row(f"{one.id} {one.name}", str(one.images), f"{one.top1:.1f}", f"{one.top5:.1f}")
        console.print(table)
    if found.confusions:
        table = _table("Most often confused", "class", "labelled", "images")
        for pair in found.confusions[:WORST_PAIRS]:
            table.add_row(f"{pair.id} {pair.name}", f"{pair.label_id} {pair.label}", str(pair.images))
        console.print(table)


def print_fit(found: Fit, console: Console) -> None:
    """Print the figures of a calibration."""
    c, judged = found.calibration, found.judged
    fitted = f"fitted to {count_text(c.fitted_on)} images and measured on {count_text(judged.images)} others"
    _say(console, [f"Calibration, {fitted}"])
    table = Table("", "before", "after", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("ECE %", f"{100 * judged.error_before:.2f}", f"{100 * judged.error_after:.2f}")
    table.add_row("log loss", f"{judged.log_loss_before:.4f}", f"{judged.log_loss_after:.4f}")
    console.print(table)
    _say(console, found.sentences())


def print_comparison(found: Comparison, console: Console) -> None:
    """Print two evaluations of the same images, and how they differ."""
    _say(console, [f"A: {found.a.name}", f"B: {found.b.name}", f"{count_text(found.a.images)} images"])
    console.print(_accuracy((found.a, found.b)))
    _say(console, _remarks(found.a, both=True))
    _say(console, compared(found))
    if found.changed:
        table = _table("Images with another label", "key", "true class", "A", "B")
        for one in found.changed[:CHANGED]:
            table.add_row(one.key, one.true, one.a, one.b)
        console.print(table)


def compared(found: Comparison) -> list[str]:
    """Return the result of a comparison in sentences."""
    a, b = found.a, found.b
    moved = b.top1 - a.top1
    word = "the same top-1" if moved == 0 else f"{abs(moved):.2f} points {'more' if moved > 0 else 'less'} top-1"
    sure = "they differ by more than chance (p < 0.05)" if found.mcnemar_p < 0.05 else "chance alone would explain it"
    speed = b.images_per_s / a.images_per_s if a.images_per_s else 0.0
    return [
        f"B has {word} {'than' if moved else 'as'} A, and {speed:.2f} times its images/s",
        f"same label on {found.agreement:.2f} % of the images; only A gets {found.only_a} right, only B gets "
        f"{found.only_b}: McNemar's exact test gives p = {found.mcnemar_p:.3g}, {sure}",
    ]


def accepted_text(found: Accepted) -> str:
    """Return in a sentence how much a calibration accepts."""
    if found.precision is None:
        return f"the calibration, for a precision of {found.target:g} %, accepts no image"
    low, high = found.precision_interval
    return (
        f"the calibration, for a precision of {found.target:g} %, accepts {found.coverage:.1f} % of the images (coverage), "
        f"of which {found.precision:.1f} % are right (95 %: {low:.1f} to {high:.1f})"
    )


def _accuracy(found: Iterable[Evaluation]) -> Table:
    table = Table("", "top-1 %", "95 %", "top-5 %", "95 %", "ECE %", "images/s", box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right" if column.header else "left"
        column.no_wrap = True
    evaluations = tuple(found)
    names = "AB" if len(evaluations) > 1 else ("measured",)
    for name, one in zip(names, evaluations, strict=True):
        table.add_row(
            name, f"{one.top1:.2f}", _range(one.top1_interval), f"{one.top5:.2f}", _range(one.top5_interval),
            f"{one.calibration_error:.2f}", f"{one.images_per_s:.0f}",
        )  # fmt: skip
    for number, pair in enumerate(evaluations[0].reported, start=1):
        top5 = "" if pair.top5 is None else f"{pair.top5:.2f}"
        table.add_row(f"reported ({number})", f"{pair.top1:.2f}", "", top5)
    return table


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def _remarks(found: Evaluation, *, both: bool = False) -> list[str]:
    lines = [f"({number}) {pair.source}" for number, pair in enumerate(found.reported, start=1)]
    if found.reported_note:
        lines.append(f"why the reported figures differ: {found.reported_note}")
    if not both:
        how = "overconfident" if found.mean_score > found.top1 else "underconfident"
        lines.append(
            f"the mean score of the best label is {found.mean_score:.1f} %, and {found.top1:.1f} % are right: the "
            f"model is {how} on average (ECE: expected calibration error)"
        )
    if found.accepted is not None:
        lines.append(accepted_text(found.accepted))
    if found.not_decoded:
        lines.append(f"{count_text(found.not_decoded)} images could not be decoded and count as wrong")
    if found.without_label:
        lines.append(f"{count_text(found.without_label)} samples without a class were left out")
    lines += [f"incomplete: {what}" for what in found.incomplete[:5]]
    return lines


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    for column in table.columns:
        if column.header in ("images", "top-1 %", "top-5 %"):
            column.justify = "right"
            column.no_wrap = True
    return table


def _say(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def build_page(found: Evaluation | Comparison, source: str) -> str:
    """Return the page as HTML.

    Args:
        found: The result.
        source: SOURCE, as it was given.
    """
    comparison = found if isinstance(found, Comparison) else None
    variants = [found.a, found.b] if isinstance(found, Comparison) else [found]
    reported = variants[0].reported
    names = ("A", "B") if comparison else ("measured",)
    marks = [(name, one.top1, one.top1_interval) for name, one in zip(names, variants, strict=True)]
    marks += [(f"reported ({number})", pair.top1, (pair.top1, pair.top1)) for number, pair in enumerate(reported, 1)]
    return pages.render(
        "evaluation.html",
        variants=variants,
        comparison=comparison,
        source=source,
        compared=compared(comparison) if comparison else [],
        marks=marks,
        low=max(0.0, min(begin for _, _, (begin, _) in marks) - 2),
        high=min(100.0, max(end for _, _, (_, end) in marks) + 2),
        sources=[(f"({number})", pair.source) for number, pair in enumerate(reported, 1)],
        bins=[_images_by_score(one) for one in variants],
        spread=_classes_by_top1(variants[0]),
        worst=_worst(*variants),
        accepted=accepted_text(variants[0].accepted) if variants[0].accepted else "",
        thresholds=_thresholds(variants[0].fit) if variants[0].fit else [],
    )


def _images_by_score(found: Evaluation) -> list[tuple[str, float]]:
    images = {bin["from"]: float(bin["images"]) for bin in found.calibration}
    edges = [round(index / CALIBRATION_BINS, 4) for index in range(CALIBRATION_BINS)]
    return [(f"{edge:.2f} to {edge + 1 / CALIBRATION_BINS:.2f}", images.get(edge, 0.0)) for edge in edges]


def _classes_by_top1(found: Evaluation) -> list[tuple[str, int]]:
    spread = [0] * 11
    for one in found.per_class:
        spread[int(one.top1 // 10)] += 1
    return list(zip([*(f"{low} to {low + 10} %" for low in range(0, 100, 10)), "100 %"], spread, strict=True))


def _thresholds(found: Fit) -> list[ClassThreshold]:
    """Return the classes with the highest thresholds of their own, first those that are never accepted."""
    high = [(2.0 if one.threshold is None else one.threshold, one) for one in found.calibration.classes]
    return [one for _, one in sorted(high, key=lambda pair: (-pair[0], pair[1].id))[:CLASSES]]


def _worst(found: Evaluation, other: Evaluation | None = None) -> list[tuple[ClassAccuracy, ClassAccuracy | None]]:
    """Return the classes with the lowest top-1, each with the other variant's figures."""
    second = {one.id: one for one in other.per_class} if other else {}
    wrong = (one for one in found.per_class if one.top1 < 100 or (other and second[one.id].top1 < 100))
    worst = sorted(wrong, key=lambda one: (one.top1, -one.images, one.id))[:CLASSES]
    return [(one, second.get(one.id)) for one in worst]
