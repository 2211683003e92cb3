"""Precision from right and wrong answers: per class, over all of DEST, and the score from which it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.statistics import wilson
from pipeline.evaluate.thresholds import reached


@dataclass(frozen=True, slots=True)
class Precision:
    """A share of labels that are right, with its 95 % interval; all between 0 and 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The lowest score at or above which the sample shows a precision.

    Attributes:
        score: The lowest accepted score.
        images: Images of the sample with this score or a higher one.
        precision: Precision among these images.
        is_pooled: Whether it is for all classes together.
    """

    score: float
    images: int
    precision: float
    is_pooled: bool = False


def overall(classes: Sequence[tuple[int, int, int]]) -> Precision:
    """Return the precision over classes of different sizes: their mean, weighted by their labels.

    The interval is Wilson's for the number of images in a plain sample that is as certain (the effective sample size, as in
    surveys). To keep a class with few answers from seeming certain, its variance is computed with two extra answers that
    are right as often as all.

    Args:
        classes: Right answers, answers, and labels in DEST, of each class; at least one class, each with an answer.
    """
    right, answered, labels = (np.array(values, np.float64) for values in zip(*classes, strict=True))
    shares = labels / labels.sum()
    value = float((shares * right / answered).sum())
    expected = (right + 2 * value) / (answered + 2)
    variance = float((shares**2 * expected * (1 - expected) / answered).sum())
    effective = value * (1 - value) / variance if variance > 0 else 1 / float((shares**2 / answered).sum())
    return Precision(value, *wilson(value * effective, effective))


def threshold(answers: Sequence[tuple[float, bool, float]], target: float) -> Threshold | None:
    """Return the lowest score at or above which the answers show a precision, or None if there is none.

    The rule is that of `pipeline.evaluate.thresholds`.

    Args:
        answers: Score, whether the label is right, and weight, of each image.
        target: Precision, below 1.
    """
    if not answers:
        return None
    scores, right, weights = map(np.array, zip(*answers, strict=True))
    found = reached(scores.astype(np.float64), right, weights, target)
    return None if found is None else Threshold(*found[:3])
