"""End this process where native code takes too long: a thread inside it cannot be stopped in any other way.

For pool processes only, whose work another process retries; never for a caller's process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from models.errors import DeviceLostError
from models.inference.predictions import Labeller, Predictions, UInt8Array

# Any nonzero codes will do: work in progress was noted before it began.
TOO_LONG_EXIT = 75
LOST_GPU_EXIT = 76
# A batch may take this many times the measured time. A core shared with eight others, a laptop that throttles and
# memory that swaps slow it down by less.
PATIENCE = 20


class Watchdog(AbstractContextManager[None]):
    """Use as a context manager around each piece of work, in any number of threads; costs 1 to 2 us each.

    Args:
        timeout_s: A piece that takes longer ends the process.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._began: dict[int, float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._began[threading.get_ident()] = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        del self._began[threading.get_ident()]

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s)):
            now = time.monotonic()
            if any(now - began > self._timeout_s for began in list(self._began.values())):
                os._exit(TOO_LONG_EXIT)


def patience(predict: Callable[[UInt8Array], object], side: int, batch_size: int, timeout_s: float) -> float:
    """Return the seconds that a batch may take: `timeout_s`, or more where a black image shows that the model is slow."""
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        predict(np.zeros((1, side, side, 3), np.uint8))
        seconds.append(time.monotonic() - began)
    return max(timeout_s, PATIENCE * batch_size * min(seconds))


class WatchedLabeller:
    """A labeller whose process ends where a batch takes too long, or where its GPU is lost.

    Args:
        labeller: A loaded labeller; it labels a black image twice now, to measure how long a batch takes.
        side: Side of the model's images, in pixels.
        batch_size: Most images in a batch.
        timeout_s: Least time that a batch may take. A slow model may take PATIENCE times its measured time.

    Attributes:
        timeout_s: How long a batch may take.
    """

    def __init__(self, labeller: Labeller, side: int, batch_size: int, timeout_s: float) -> None:
        self._labeller = labeller
        self.timeout_s = patience(labeller.predict, side, batch_size, timeout_s)
        self._watchdog = Watchdog(self.timeout_s)

    def predict(self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False) -> Predictions:
        """Label a batch; see `Classifier.predict`."""
        with self._watchdog:
            try:
                return self._labeller.predict(images, probabilities=probabilities, embedding=embedding)
            except DeviceLostError:
                # A CUDA context cannot be restored in its process; a new process gets a new one.
                os._exit(LOST_GPU_EXIT)
