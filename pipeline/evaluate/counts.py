"""Counts of labelled images, batch by batch: what was right, what was confused, and how two variants compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.statistics import Reliability
from pipeline.evaluate.temperature import Observed
from pipeline.sources.sample import Sample

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_CHANGED = 50

Pair = tuple[Sample, int]


@dataclass(slots=True)
class Score:
    """What one variant got right. Memory: a few numbers per class, and one for each confused pair of classes.

    Attributes:
        images: Images with a class.
        not_decoded: Those of them that could not be decoded; they count as wrong.
        per_class: int64 of shape (n_classes, 3): images, right at first, right among five.
        confused: Images by (true class, best label), where these differ.
        calibration: Scores, with what was right.
        busy_s: Seconds of work, summed over threads.
        accepted: Images whose best label reaches its threshold, where there is a calibration.
        accepted_right: Those of them that are right.
    """

    per_class: Int64Array
    images: int = 0
    not_decoded: int = 0
    confused: Counter[tuple[int, int]] = field(default_factory=Counter)
    calibration: Reliability = field(default_factory=Reliability)
    busy_s: float = 0.0
    accepted: int = 0
    accepted_right: int = 0

    @property
    def top1(self) -> int:
        """Images whose best label is right."""
        return int(self.per_class[:, 1].sum())

    @property
    def top5(self) -> int:
        """Images whose true class is among the best five."""
        return int(self.per_class[:, 2].sum())

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.images += len(batch.truth)
        self.not_decoded += int((~batch.decoded).sum())
        self.busy_s += batch.busy_s
        first = batch.ids[:, 0]
        right = batch.right
        among = (batch.ids == batch.truth[:, None]).any(axis=1)
        np.add.at(self.per_class, batch.truth, np.stack([np.ones_like(first), right, among], axis=1).astype(np.int64))
        wrong = batch.decoded & ~right
        self.confused.update(zip(batch.truth[wrong].tolist(), first[wrong].tolist(), strict=True))
        self.calibration.add(batch.scores[batch.decoded], right[batch.decoded])
        self.accepted += int(batch.accepted.sum())
        self.accepted_right += int(right[batch.accepted].sum())


@dataclass(frozen=True, slots=True)
class Batch:
    """Results of one variant for a batch; images that could not be decoded have id -1 and score 0.

    Attributes:
        truth: int64 of shape (n_images,), the true classes.
        ids: int64 of shape (n_images, k), the labels, best first.
        scores: float32 of shape (n_images,), of the best label.
        decoded: bool of shape (n_images,).
        busy_s: Seconds of decoding and inference.
        accepted: bool of shape (n_images,); False without a calibration.
        observed: Input of a calibration's fit, for the decoded images; None where none is fitted.
    """

    truth: Int64Array
    ids: Int64Array
    scores: npt.NDArray[np.float32]
    decoded: BoolArray
    busy_s: float
    accepted: BoolArray
    observed: Observed | None = None

    @property
    def right(self) -> BoolArray:
        """Whether the best label of each image is the true class."""
        return np.asarray(self.ids[:, 0] == self.truth)


@dataclass(slots=True)
class Paired:
    """How two variants compare on the same images.

    Attributes:
        agree: Images with the same best label in both.
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
        changed: The first few images with different labels: key, true class, and both labels.
    """

    agree: int = 0
    only_a: int = 0
    only_b: int = 0
    changed: list[tuple[str, int, int, int]] = field(default_factory=list)

    def add(self, samples: list[Pair], a: Batch, b: Batch) -> None:
        """Count a batch."""
        same = a.ids[:, 0] == b.ids[:, 0]
        self.agree += int(same.sum())
        self.only_a += int((a.right & ~b.right).sum())
        self.only_b += int((b.right & ~a.right).sum())
        for row in np.flatnonzero(~same)[: MAX_CHANGED - len(self.changed)]:
            sample, truth = samples[row]
            self.changed.append((sample.key, truth, int(a.ids[row, 0]), int(b.ids[row, 0])))
