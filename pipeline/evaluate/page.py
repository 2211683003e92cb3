"""The page of `evaluate --output`: what was measured, with plots, in one HTML file that needs nothing else."""

from __future__ import annotations

from models.calibration import ClassThreshold
from pipeline.evaluate.fit import Fit
from pipeline.evaluate.results import ClassAccuracy, Comparison, Evaluation
from pipeline.evaluate.statistics import CALIBRATION_BINS
from pipeline.evaluate.text import accepted_text, compared
from pipeline.html import pages

CLASSES = 60


def build_page(found: Evaluation | Comparison, source: str) -> str:
    """Return the page as HTML.

    Args:
        found: What was measured.
        source: SOURCE, as it was given.
    """
    comparison = found if isinstance(found, Comparison) else None
    ways = [found.a, found.b] if isinstance(found, Comparison) else [found]
    reported = ways[0].reported
    names = ("A", "B") if comparison else ("measured",)
    marks = [(name, one.top1, one.top1_interval) for name, one in zip(names, ways, strict=True)]
    marks += [(f"reported ({number})", pair.top1, (pair.top1, pair.top1)) for number, pair in enumerate(reported, 1)]
    return pages.render(
        "evaluation.html",
        ways=ways,
        comparison=comparison,
        source=source,
        compared=compared(comparison) if comparison else [],
        marks=marks,
        low=max(0.0, min(begin for _, _, (begin, _) in marks) - 2),
        high=min(100.0, max(end for _, _, (_, end) in marks) + 2),
        sources=[(f"({number})", pair.source) for number, pair in enumerate(reported, 1)],
        bins=[_images_by_score(one) for one in ways],
        spread=_classes_by_top1(ways[0]),
        worst=_worst(*ways),
        accepted=accepted_text(ways[0].accepted) if ways[0].accepted else "",
        thresholds=_thresholds(ways[0].fit) if ways[0].fit else [],
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
    """Return the classes with the highest thresholds of their own; first those that are never accepted."""
    high = [(2.0 if one.threshold is None else one.threshold, one) for one in found.calibration.classes]
    return [one for _, one in sorted(high, key=lambda pair: (-pair[0], pair[1].id))[:CLASSES]]


def _worst(found: Evaluation, other: Evaluation | None = None) -> list[tuple[ClassAccuracy, ClassAccuracy | None]]:
    """Return the classes with the lowest top-1, beside what the other way has of them."""
    second = {one.id: one for one in other.per_class} if other else {}
    wrong = (one for one in found.per_class if one.top1 < 100 or (other and second[one.id].top1 < 100))
    worst = sorted(wrong, key=lambda one: (one.top1, -one.images, one.id))[:CLASSES]
    return [(one, second.get(one.id)) for one in worst]
