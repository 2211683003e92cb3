"""The temperature: the number that logits are divided by, so that a score of 0.8 is right 80 % of the time.

It is fitted after labelling, when the probabilities are no longer in memory: those of a million images with a thousand
classes would be 4 GB. So the best label's score of each image is kept at a few temperatures, and interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from models.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from models.inference.predictions import Float32Array, Int32Array
from pipeline.sources.sample import Sample

Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]

# The logarithm of a score is smooth in that of the temperature: this many points give it to 1e-6 in between.
NUM_POINTS = 32
_POINTS = chebyshev.chebpts1(NUM_POINTS)
_MIDDLE = (math.log(MAX_TEMPERATURE) + math.log(MIN_TEMPERATURE)) / 2
_HALF = (math.log(MAX_TEMPERATURE) - math.log(MIN_TEMPERATURE)) / 2
_TEMPERATURES = np.exp(_MIDDLE + _HALF * _POINTS)
# The least normal float32: used where a probability is 0.
_TINY = float(np.finfo(np.float32).tiny)
# 150 bytes an image.
MAX_IMAGES = 500_000
_PIECE = 65_536


@dataclass(frozen=True, slots=True)
class Observed:
    """What is kept of labelled images: enough for their scores at any temperature, whatever the number of classes.

    Attributes:
        digests: uint64 of shape (n_images,), a hash of shard and key.
        truth: int32 of shape (n_images,), the true class.
        best: int32 of shape (n_images,), the best label.
        truth_gaps: float32 of shape (n_images,), logarithm of the best label's probability over the true class's.
        log_sums: float32 of shape (n_images, NUM_POINTS), minus the logarithm of the best label's score at each temperature.
    """

    digests: UInt64Array
    truth: Int32Array
    best: Int32Array
    truth_gaps: Float32Array
    log_sums: Float32Array

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the best label of each image is the true class."""
        return np.asarray(self.best == self.truth)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Observed:
        """Return some of the images."""
        return Observed(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def join(pieces: Sequence[Observed]) -> Observed:
        """Concatenate images."""
        return Observed(*(np.concatenate([getattr(one, field.name) for one in pieces]) for field in fields(Observed)))

    def log_scores(self, temperature: float) -> Float64Array:
        """Return the logarithm of the best label's score at a temperature: float64 of shape (n_images,)."""
        place = (math.log(temperature) - _MIDDLE) / _HALF
        # Values at the points -> coefficients of Chebyshev's polynomials -> the value at the place, as one product.
        terms = chebyshev.chebvander(np.array([place]), NUM_POINTS - 1)[0] * (2 / NUM_POINTS)
        terms[0] /= 2
        weights = chebyshev.chebvander(_POINTS, NUM_POINTS - 1) @ terms
        pieces = [self.log_sums[i : i + _PIECE] @ weights for i in range(0, len(self), _PIECE)]
        return np.asarray(np.minimum(-np.concatenate([np.empty(0), *pieces]), 0.0))

    def log_loss(self, temperature: float) -> float:
        """Return the mean negative logarithm of the true class's probability at a temperature, in nats."""
        return float((self.truth_gaps / temperature - self.log_scores(temperature)).mean())


def observe(samples: Sequence[Sample], truth: Int32Array, best: Int32Array, probabilities: Float32Array) -> Observed:
    """Return what is kept of a batch.

    Args:
        samples: The images; their names are hashed.
        truth: int32 of shape (n_images,), the true class of each.
        best: int32 of shape (n_images,), the best label of each.
        probabilities: float32 of shape (n_images, n_classes), at temperature 1.
    """
    logs = np.log(np.maximum(probabilities, _TINY), dtype=np.float64)
    gaps = logs.max(axis=1, keepdims=True) - logs  # (n_images, n_classes)
    sums = np.stack([np.log(np.exp(-gaps / temperature).sum(axis=1)) for temperature in _TEMPERATURES], axis=1)
    truth_gaps = np.take_along_axis(gaps, truth[:, np.newaxis].astype(np.int64), axis=1)[:, 0]
    digests = np.array([_digest(sample) for sample in samples], np.uint64)
    return Observed(digests, truth, best, truth_gaps.astype(np.float32), sums.astype(np.float32))


def _digest(sample: Sample) -> int:
    name = f"{sample.shard}\0{sample.key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


class Collector:
    """Collects what is kept of each batch. Above `most` images it halves the range of digests that it keeps.

    Args:
        most: Most images that are kept, plus those of one batch.

    Attributes:
        seen: Images so far.
    """

    def __init__(self, most: int = MAX_IMAGES) -> None:
        self.seen = 0
        self._most = most
        self._below = 2**64
        self._pieces: list[Observed] = []
        self._kept = 0

    def add(self, observed: Observed) -> None:
        """Add a batch."""
        self.seen += len(observed)
        self._keep(observed)
        while self._kept > self._most:
            self._below //= 2
            pieces, self._pieces, self._kept = self._pieces, [], 0
            for piece in pieces:
                self._keep(piece)

    def _keep(self, observed: Observed) -> None:
        if self._below < 2**64:
            observed = observed.take(observed.digests < np.uint64(self._below))
        if len(observed):
            self._pieces.append(observed)
            self._kept += len(observed)

    def halves(self) -> tuple[Observed, Observed]:
        """Divide the images: every second one of each class, by their digests, to fit to, and the others to measure on.

        The same images are always divided in the same way, whatever their order.
        """
        whole = Observed.join(self._pieces)
        order = np.lexsort((whole.digests, whole.truth))
        return whole.take(order[::2]), whole.take(order[1::2])

    @property
    def kept(self) -> int:
        """Images that are kept."""
        return self._kept


def fit_temperature(observed: Observed) -> float:
    """Return the temperature with the least log loss, to four decimals.

    The loss is convex in one over the temperature, so it has one minimum, and narrowing the range finds it.
    """
    if observed.right.all():
        return MIN_TEMPERATURE  # the lower the temperature, the smaller the loss
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    while high - low > 1e-6:
        third = (high - low) / 3
        if observed.log_loss(math.exp(low + third)) <= observed.log_loss(math.exp(high - third)):
            high -= third
        else:
            low += third
    return min(max(round(math.exp((low + high) / 2), 4), MIN_TEMPERATURE), MAX_TEMPERATURE)
