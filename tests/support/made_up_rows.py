"""Made-up labels for rows of an output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.inference.predictions import Predictions


def predictions_of(best: Sequence[int], *, classes: int, scores: Sequence[float] | None = None) -> Predictions:
    """Return top-2 labels with the given best classes; the second label is the next class."""
    ids = np.array(best, np.int32).reshape(-1, 1)
    top = np.asarray(scores if scores is not None else [0.75] * len(ids), np.float32).reshape(-1, 1)
    return Predictions(np.hstack([ids, (ids + 1) % classes]), np.hstack([top, 1 - top]))
