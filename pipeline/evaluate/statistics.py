"""How certain a measured accuracy is: Wilson's interval, McNemar's exact test, and the calibration error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.error_budget import chance_of

Float64Array = npt.NDArray[np.float64]

# Two-sided, 95 %.
Z95 = 1.959963984540054
CALIBRATION_BINS = 15


def wilson(right: float, images: float, z: float = Z95) -> tuple[float, float]:
    """Return the interval that contains the true rate, as two rates between 0 and 1 (Wilson, 1927).

    Unlike the rate plus or minus its standard error it stays within 0 and 1, and has a width at 0 and at 1.

    Args:
        right: Number of images that were right.
        images: Number of images; 0 gives (0, 1).
        z: Quantile of the normal distribution; 1.96 for 95 %.
    """
    if images == 0:
        return 0.0, 1.0
    low, high = wilson_bounds(np.array([right]), np.array([images]), z)
    return float(low[0]), float(high[0])


def wilson_bounds(
    right: Float64Array | npt.NDArray[np.int64], images: Float64Array | npt.NDArray[np.int64], z: float = Z95
) -> tuple[Float64Array, Float64Array]:
    """Return the bounds of many Wilson intervals: float64 of the shape of `right` and `images`, which are at least 1."""
    rate, weight = right / images, z * z / images
    middle = (rate + weight / 2) / (1 + weight)
    half = z * np.sqrt(rate * (1 - rate) / images + weight / (4 * images)) / (1 + weight)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def percent(part: float, whole: float) -> float:
    """Return a share in percent, rounded as in JSON and pages."""
    return round(100 * part / whole, 3)


def interval(right: int, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval in percent."""
    low, high = wilson(right, images)
    return percent(low, 1), percent(high, 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test: whether two variants are right equally often.

    Among the images that exactly one variant gets right, each is a toss of a fair coin if both are equally good.

    Args:
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
    """
    tosses = only_a + only_b
    return min(1.0, 2 * chance_of(max(only_a, only_b), tosses, 0.5)) if tosses else 1.0


@dataclass(slots=True)
class Reliability:
    """Whether a score of 0.8 is right 80 % of the time: images by the score of their best label, in equal bins.

    Attributes:
        images: Number of images in each bin.
        scores: Sum of their scores.
        right: Number of them that are right.
    """

    images: Float64Array = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    scores: Float64Array = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    right: Float64Array = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))

    def add(self, scores: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> None:
        """Count a batch."""
        bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        self.images += np.bincount(bins, minlength=CALIBRATION_BINS)
        self.scores += np.bincount(bins, scores.astype(np.float64), minlength=CALIBRATION_BINS)
        self.right += np.bincount(bins, right, minlength=CALIBRATION_BINS)

    @property
    def error(self) -> float:
        """Expected calibration error: mean difference of score and rate, weighted by images; between 0 and 1."""
        total = self.images.sum()
        return float(np.abs(self.scores - self.right).sum() / total) if total else 0.0

    @property
    def mean_score(self) -> float:
        """Mean score of the best label."""
        total = self.images.sum()
        return float(self.scores.sum() / total) if total else 0.0

    def bins(self) -> list[dict[str, float | int]]:
        """Return each bin that has images: its bounds, images, mean score, and share that is right."""
        return [
            {
                "from": round(index / CALIBRATION_BINS, 4),
                "to": round((index + 1) / CALIBRATION_BINS, 4),
                "images": int(images),
                "mean_score": round(float(self.scores[index] / images), 4),
                "right": round(float(self.right[index] / images), 4),
            }
            for index, images in enumerate(self.images)
            if images
        ]
