"""The result of labelling a batch, and the interface of everything that labels batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Labels of a batch, in input order.

    Attributes:
        label_ids: int32 of shape (n_images, k), best first; equal scores keep the lower class index first.
        scores: float32 of shape (n_images, k), probabilities after softmax.
        probabilities: float32 of shape (n_images, n_classes), or None if not asked for.
        embedding: float32 of shape (n_images, features), or None if not asked for.
    """

    label_ids: Int32Array
    scores: Float32Array
    probabilities: Float32Array | None = None
    embedding: Float32Array | None = None

    def rows(self, first: int, last: int) -> Predictions:
        """Return the labels of images `first` to `last` (exclusive), as views."""
        optional = (None if values is None else values[first:last] for values in (self.probabilities, self.embedding))
        return Predictions(self.label_ids[first:last], self.scores[first:last], *optional)

    @staticmethod
    def join(pieces: Sequence[Predictions]) -> Predictions:
        """Concatenate the labels of several batches, which all have the same optional parts."""
        if len(pieces) == 1:
            return pieces[0]
        probabilities = [piece.probabilities for piece in pieces if piece.probabilities is not None]
        embeddings = [piece.embedding for piece in pieces if piece.embedding is not None]
        return Predictions(
            np.concatenate([piece.label_ids for piece in pieces]),
            np.concatenate([piece.scores for piece in pieces]),
            np.concatenate(probabilities) if probabilities else None,
            np.concatenate(embeddings) if embeddings else None,
        )


class Labeller(Protocol):
    """Labels batches: a `Classifier`, or its substitute in tests and benchmarks."""

    def predict(self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False) -> Predictions:
        """Label a batch; see `Classifier.predict`."""
