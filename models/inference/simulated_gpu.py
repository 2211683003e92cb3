"""A simulated GPU: takes as long per batch as a real GPU of a given rate. For benchmarks and tests only.

It allows tuning and testing a pipeline that feeds GPUs where there is none. Timing is as on a GPU: batches are queued,
the caller's thread sleeps without the GIL and without a core, and a batch that arrives during another one starts when
that one ends. The labels are made up from a few pixels. They are the same for the same pixels in any batch, so that
different settings of a pipeline can be compared.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from models.inference.predictions import Predictions, UInt8Array

# Pixels read along each axis of an image: a label takes 1 us, and not the 100 us of reading 150 kB.
GRID = 7
# Knuth's multiplicative hash, so that similar images get different labels.
_HASH = 2_654_435_761


@dataclass(slots=True)
class Timetable:
    """When the GPU is free. Thread-safe.

    Attributes:
        rate: Images per second.
        busy_s: Seconds of computing so far, including accepted batches that are not done.
    """

    rate: float
    busy_s: float = 0.0
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_time(self, images: int) -> None:
        """Sleep until the GPU would have finished this many images, queued behind all earlier ones."""
        takes = images / self.rate
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + takes
            self.busy_s += takes
            until = self._free_at
        time.sleep(max(0.0, until - time.perf_counter()))


class SimulatedClassifier:
    """Takes the place of a `Classifier`. May be called from several threads.

    Args:
        rate: Images per second of the GPU.
        num_classes: Number of classes of the model that it replaces.
        top_k: Labels per image, at most num_classes.
    """

    def __init__(self, rate: float, num_classes: int, top_k: int) -> None:
        self.num_classes = num_classes
        self._top_k = top_k
        self._scores = (0.5 ** np.arange(1, num_classes + 1)).astype(np.float32)
        self._timetable = Timetable(rate)

    def predict(self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False) -> Predictions:
        """Make up labels for a batch, in the time that the GPU would take.

        Args:
            images: uint8 of shape (n_images, crop, crop, 3), HWC RGB; n_images may be 0.
            probabilities: As for `Classifier.predict`.
            embedding: Must be false; callers refuse embeddings before they build this.
        """
        assert not embedding, "a simulated GPU has no embeddings"
        step = max(1, images.shape[1] // GRID)
        sums = images[:, step // 2 :: step, step // 2 :: step].sum(axis=(1, 2, 3), dtype=np.uint64)
        best = (sums * np.uint64(_HASH) % np.uint64(2**32)) % np.uint64(self.num_classes)
        places = np.arange(self.num_classes if probabilities else self._top_k)
        # Of shape (n_images, k or n_classes).
        ids = ((best[:, None].astype(np.int64) + places) % self.num_classes).astype(np.int32)
        self._timetable.pass_time(len(images))
        every = None
        if probabilities:
            every = np.empty((len(images), self.num_classes), np.float32)
            np.put_along_axis(every, ids.astype(np.int64), np.broadcast_to(self._scores, every.shape), axis=1)
        k = self._top_k
        scores = np.ascontiguousarray(np.broadcast_to(self._scores[:k], (len(images), k)))
        return Predictions(np.ascontiguousarray(ids[:, :k]), scores, probabilities=every)
