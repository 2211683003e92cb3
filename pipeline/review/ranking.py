"""Two orders of a DEST's rows, by uncertainty and at random, and the first rows of each class in either order.

Memory is that of the rows kept, however many there are.
"""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError

Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]

# `order` breaks ties of `rank`; unit and position are the row's place.
CANDIDATE = np.dtype(
    [("label_id", np.int32), ("rank", np.float64), ("order", np.uint64), ("unit", np.int64), ("position", np.int64),
     ("score", np.float32)]
)  # fmt: skip
Candidates = npt.NDArray[Any]  # of dtype CANDIDATE, shape (rows,)

# Rows that may wait before they are sorted in: 10 MB.
LOOSE_ROWS = 262_144
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class By(StrEnum):
    """What makes a label worth reviewing."""

    MARGIN = "margin"
    ENTROPY = "entropy"
    LOW_SCORE = "low-score"
    RANDOM = "random"


def uncertainty_rank(by: By, top_scores: npt.NDArray[np.float32]) -> Float64Array:
    """Return a number per row that is lowest where the model is least certain.

    Args:
        by: margin: the best score less the second; entropy: of the k scores, scaled to sum to 1, negated and divided by
            log k; low-score: the best score.
        top_scores: float32 of shape (rows, k), best first.

    Returns:
        float64 of shape (rows,).

    Raises:
        ConfigError: DEST has only one score for a row, and `by` compares several.
    """
    scores = top_scores.astype(np.float64)
    if by is By.LOW_SCORE:
        return scores[:, 0]
    if scores.shape[1] < 2:
        raise ConfigError(
            f"--by {by.value} compares the scores of an image, expected 2 or more, but DEST has {scores.shape[1]}; give "
            "--by low-score, or label with a larger --top-k"
        )
    if by is By.MARGIN:
        return np.asarray(scores[:, 0] - scores[:, 1])
    shares = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-300)
    logs = np.log(np.maximum(shares, 1e-300))
    return np.asarray((shares * logs).sum(axis=1) / np.log(scores.shape[1]))


def random_order(seed: int, unit: int, positions: npt.NDArray[np.int64]) -> UInt64Array:
    """Return a row's place in the random order: a hash of the seed, its unit and its position, by splitmix64.

    A unit's rows are the same on every run of a plan, so their order is too. It does not depend on a row's content.

    Args:
        seed: 0 or more.
        unit: Number of the row's unit.
        positions: int64 of shape (rows,): positions of the rows in their part file.

    Returns:
        uint64 of shape (rows,).
    """
    state = _mix(np.array([seed], np.uint64) + _GOLDEN)
    state = _mix((state ^ np.uint64(unit)) + _GOLDEN)
    return _mix(state + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(x: UInt64Array) -> UInt64Array:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class LowestPerClass:
    """The rows of each class with the lowest ranks. Rows may come in any order, from any thread.

    Args:
        count: Rows to keep of each class.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: Candidates = np.empty(0, CANDIDATE)
        self._loose: list[Candidates] = []
        self._num_loose = 0
        # By class, the highest rank that is still kept; the last value is for all other classes.
        self._highest = np.array([np.inf])
        self._adding = threading.Lock()

    def add(self, rows: Candidates) -> None:
        """Add rows."""
        if not self._count:
            return
        highest = self._highest
        rows = rows[rows["rank"] <= highest[np.minimum(rows["label_id"], len(highest) - 1)]]
        with self._adding:
            self._loose.append(rows)
            self._num_loose += len(rows)
            if self._num_loose > max(LOOSE_ROWS, len(self._kept)):
                self._sort()

    def rows(self) -> Candidates:
        """Return the rows kept, by class, and within it by rank."""
        self._sort()
        return self._kept

    def _sort(self) -> None:
        rows = np.concatenate([self._kept, *self._loose])
        rows = rows[np.lexsort((rows["order"], rows["rank"], rows["label_id"]))]
        classes, first, sizes = np.unique(rows["label_id"], return_index=True, return_counts=True)
        within = np.arange(len(rows)) - np.repeat(first, sizes)  # a row's number in its class
        last = first[sizes >= self._count] + self._count - 1  # the last row kept
        self._highest = np.full(int(classes.max(initial=-1)) + 2, np.inf)
        self._highest[rows["label_id"][last]] = rows["rank"][last]
        self._kept, self._loose, self._num_loose = rows[within < self._count].copy(), [], 0
