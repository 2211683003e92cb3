"""From right and wrong answers to precision: per class, over all of DEST, and as a score from which on it is reached."""

from __future__ import annotations

import math
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


def overall(classes: Sequence[tuple[Precision, int]]) -> Precision:
    """Return the precision over classes of different sizes: the mean of theirs, weighted by their labels.

    The interval joins those of the classes (the method of variance estimates recovery, Zou and Donner 2008): each way,
    the root of the weighted squares of their distances. Unlike a normal interval it has a width where all are right.

    Args:
        classes: Precision, and labels in DEST, of each class; at least one.
    """
    total = sum(size for _, size in classes)
    shares = [(one, size / total) for one, size in classes]
    value = sum(share * one.value for one, share in shares)
    below = math.sqrt(sum((share * (one.value - one.low)) ** 2 for one, share in shares))
    above = math.sqrt(sum((share * (one.high - one.value)) ** 2 for one, share in shares))
    return Precision(value, max(0.0, value - below), min(1.0, value + above))


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
