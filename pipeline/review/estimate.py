"""From right and wrong answers to precision: per class, over all of DEST, and as a score from which on it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.statistics import wilson


@dataclass(frozen=True, slots=True)
class Precision:
    """A share of labels that are right, with its 95 % interval; all between 0 and 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The lowest score from which on a precision is reached in the sample.

    Attributes:
        score: Labels with this score or a higher one.
        images: Of the sample, that have it.
        precision: Among those.
        is_pooled: Whether it is of all classes together.
    """

    score: float
    images: int
    precision: float
    is_pooled: bool = False


def precision_of(right: int, images: int) -> Precision:
    """Return the precision of a class, with Wilson's interval."""
    low, high = wilson(right, images)
    return Precision(right / images, low, high)


def overall(classes: Sequence[tuple[int, int, int]]) -> Precision:
    """Return the precision over classes of different sizes: the mean of theirs, weighted by their labels.

    The interval is Wilson's for as many images of a plain sample as would be as sure (the effective sample size, as in
    surveys). So that a class of few answers does not pass for sure, its spread is that of its answers and of two more
    that are right as often as all.

    Args:
        classes: Right answers, answers, and labels in DEST, of each class; at least one, each with an answer.
    """
    right, answered, labels = (np.array(values, np.float64) for values in zip(*classes, strict=True))
    shares = labels / labels.sum()
    value = float((shares * right / answered).sum())
    expected = (right + 2 * value) / (answered + 2)
    variance = float((shares**2 * expected * (1 - expected) / answered).sum())
    effective = value * (1 - value) / variance if variance > 0 else 1 / float((shares**2 / answered).sum())
    low, high = wilson(value * effective, effective)
    return Precision(value, low, high)


def threshold(answers: Sequence[tuple[float, bool, float]], target: float, *, least: int) -> Threshold | None:
    """Return the lowest score from which on the precision is at least `target`, or None where no score does it.

    Args:
        answers: Score, whether the label is right, and weight, of each image.
        target: Between 0 and 1.
        least: Images that must have the score or a higher one, so that chance alone makes no threshold.
    """
    if not answers:
        return None
    scores, right, weights = (np.array(values, np.float64) for values in zip(*answers, strict=True))
    order = np.argsort(-scores, kind="stable")
    scores, right, weights = scores[order], right[order], weights[order]
    precision = np.cumsum(right * weights) / np.cumsum(weights)
    images = np.arange(1, len(scores) + 1)
    # Images of one score are taken in together.
    is_last = np.append(scores[1:] != scores[:-1], True)
    found = np.flatnonzero(is_last & (images >= least) & (precision >= target - 1e-12))
    if not len(found):
        return None
    last = found[-1]
    return Threshold(float(scores[last]), int(images[last]), float(precision[last]))
