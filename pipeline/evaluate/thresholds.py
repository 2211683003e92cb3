"""The score from which a label is accepted, so that accepted images have the requested precision.

A threshold is the lowest score at which Wilson's one-sided lower bound of the precision, for 95 %, is at least the target,
on the images with that score or a higher one. A threshold from the rate itself would have a true precision below the target
half of the time (docs/decisions.md).

A class has enough images if the bound would reach the target with all of them right: 52 images with its label for 95 %.
Such a class gets its own threshold, if there is one. All other classes share the pooled threshold, which is chosen on their
images. But a class with enough images is never accepted if those that the pooled threshold accepts refute the target: the
upper bound is below it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from models.calibration import Threshold
from models.inference.predictions import Int32Array
from pipeline.evaluate.statistics import Float64Array, wilson, wilson_bounds

# One-sided, 95 %.
Z95_ONE_SIDED = 1.6448536269514722
# Digits of a threshold: its step is larger than the difference between two computations of one score.
_DIGITS = 6

BoolArray = npt.NDArray[np.bool_]


def images_needed(target: float) -> int:
    """Return how many images, all of them right, are needed to show a precision.

    Args:
        target: Precision, between 0 and 1.
    """
    return math.ceil(Z95_ONE_SIDED**2 * target / (1 - target))


def choose_thresholds(
    best: Int32Array, scores: Float64Array, right: BoolArray, target: float
) -> tuple[Threshold, dict[int, Threshold]]:
    """Choose the threshold of each class, and the pooled one that all others share.

    Args:
        best: int32 of shape (n_images,), the best label of each image.
        scores: float64 of shape (n_images,), its calibrated score.
        right: bool of shape (n_images,).
        target: Requested precision, between 0 and 1.

    Returns:
        The pooled threshold, and those of the classes that have their own, by class index, in order.
    """
    least = images_needed(target)
    ids, counts = np.unique(best, return_counts=True)
    able = ids[counts >= least].tolist()
    own = {}
    for class_id in able:
        rows = best == class_id
        found = lowest_score(scores[rows], right[rows], target)
        if found.threshold is not None:
            own[class_id] = found
    rest = ~np.isin(best, list(own))
    pooled = lowest_score(scores[rest], right[rest], target)
    if pooled.threshold is not None:
        for class_id in able:
            if class_id not in own and (never := _refuted(best == class_id, scores, right, pooled.threshold, target)):
                own[class_id] = never
    return pooled, {class_id: own[class_id] for class_id in sorted(own)}


def lowest_score(scores: Float64Array, right: BoolArray, target: float) -> Threshold:
    """Return the lowest score at or above which images have the precision; its `threshold` is None if there is none.

    Args:
        scores: float64 of shape (n_images,).
        right: bool of shape (n_images,).
        target: Precision, between 0 and 1.
    """
    found = reached(scores, right, np.ones(len(scores)), target)
    if found is None:
        return Threshold(threshold=None, images=len(scores), accepted=0, right=0, lower_bound=0.0)
    score, accepted, precision, bound = found
    return Threshold(
        threshold=score,
        images=len(scores),
        accepted=accepted,
        right=round(precision * accepted),
        lower_bound=round(bound, _DIGITS),
    )


def reached(
    scores: Float64Array, right: BoolArray, weights: Float64Array, target: float
) -> tuple[float, int, float, float] | None:
    """Return the lowest score at or above which images have a precision, or None if there is none.

    Images of unequal weight count as the number of images in a plain sample that is as certain.

    Args:
        scores: float64 of shape (n_images,).
        right: bool of shape (n_images,).
        weights: float64 of shape (n_images,).
        target: Precision, between 0 and 1.

    Returns:
        (score, images, precision, bound): the score; and of the images at or above it the number, the share that is
        right, and its lower bound.
    """
    scores = np.floor(scores * 10**_DIGITS) / 10**_DIGITS
    order = np.argsort(-scores, kind="stable")
    scores, right, weights = scores[order], right[order], weights[order]
    total = np.cumsum(weights)
    precision, effective = np.cumsum(right * weights) / total, total**2 / np.cumsum(weights**2)
    lower, _ = wilson_bounds(precision * effective, effective, Z95_ONE_SIDED)
    # Images with equal scores are accepted together.
    is_last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]
    good = np.flatnonzero(is_last & (lower >= target))
    if not len(good):
        return None
    last = good[-1]
    return float(scores[last]), int(last) + 1, float(precision[last]), float(lower[last])


def _refuted(rows: BoolArray, scores: Float64Array, right: BoolArray, pooled: float, target: float) -> Threshold | None:
    """Return a threshold that accepts nothing, if the class's images that the pooled one accepts refute the target."""
    accepted = rows & (scores >= pooled)
    hits, count = int(right[accepted].sum()), int(accepted.sum())
    _, upper = wilson(hits, count, Z95_ONE_SIDED)
    if upper >= target:
        return None
    return Threshold(threshold=None, images=int(rows.sum()), accepted=0, right=0, lower_bound=0.0)
