"""Fill batches for one session from many callers: whatever waits when the session is free goes together.

Nothing waits for a clock. A batch is begun the moment the session has none, with what is there; a second and a third are
sent ahead while one is computed, so that copying overlaps with computing, and those only when they are full. So a
block waits at most for the batch before it: a slow session gets full batches, and a fast one gets small ones at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from models.inference.classifier import Labeller, Predictions, UInt8Array


@dataclass(slots=True)
class _Request:
    """Images of one caller, and what became of their pieces by the index of each one's first image."""

    images: UInt8Array
    taken: int = 0
    pieces: dict[int, Predictions] = field(default_factory=dict)
    labelled: int = 0
    answer: Future[Predictions] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Load:
    """What a session has done so far. Subtract two to have a span.

    Attributes:
        at_s: When, on this machine's monotonic clock.
        busy_s: Seconds with at least one batch in it.
        images: Labelled.
        batches: Run.
    """

    at_s: float
    busy_s: float
    images: int
    batches: int


class Batcher:
    """Share a labeller among threads.

    Args:
        labeller: May be called from `in_flight` threads at a time.
        batch_size: Images that it is given at most.
        in_flight: Batches that it is given at a time.
        embedding: Whether to ask it for embeddings.
    """

    def __init__(self, labeller: Labeller, batch_size: int, in_flight: int, *, embedding: bool = False) -> None:
        self._labeller = labeller
        self._batch_size = batch_size
        self._embedding = embedding
        self._waiting: deque[_Request] = deque()
        self._num_waiting = 0
        self._active = 0
        self._active_since = 0.0
        self._busy_s = 0.0
        self._images = 0
        self._batches = 0
        self._changed = threading.Condition()
        self._closed = False
        for number in range(in_flight):
            threading.Thread(target=self._serve, name=f"batch-{number}", daemon=True).start()

    def predict(self, images: UInt8Array) -> Predictions:
        """Label images, together with those of other callers.

        Args:
            images: uint8 of shape (n_images, crop, crop, 3), HWC RGB; at least one.

        Raises:
            InferenceError: As the labeller raised it, also where another caller's images were at fault.
        """
        request = _Request(images)
        with self._changed:
            self._waiting.append(request)
            self._num_waiting += len(images)
            self._changed.notify()
        return request.answer.result()

    def load(self) -> Load:
        """Return what was done so far."""
        with self._changed:
            now = time.monotonic()
            running = now - self._active_since if self._active else 0.0
            return Load(now, self._busy_s + running, self._images, self._batches)

    def close(self) -> None:
        """Let the threads end; nobody may call `predict` afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while pieces := self._take():
            images = [request.images[first:last] for request, first, last in pieces]
            try:
                batch = images[0] if len(images) == 1 else np.concatenate(images)
                predictions = self._labeller.predict(batch, embedding=self._embedding)
            except Exception as err:  # whatever it is, the callers must hear of it  # noqa: BLE001
                self._finish(0)
                for request, _, _ in pieces:
                    if not request.answer.done():
                        request.answer.set_exception(err)
            else:
                self._finish(len(batch))
                self._answer(pieces, predictions)

    def _take(self) -> list[tuple[_Request, int, int]]:
        """Wait for a batch and return its pieces; none when all is over."""
        with self._changed:
            while not self._closed and not (
                self._num_waiting >= self._batch_size or (self._num_waiting and not self._active)
            ):
                self._changed.wait()
            if self._closed:
                return []
            pieces = []
            room = self._batch_size
            while room and self._waiting:
                request = self._waiting[0]
                first = request.taken
                request.taken = min(first + room, len(request.images))
                pieces.append((request, first, request.taken))
                room -= request.taken - first
                if request.taken == len(request.images):
                    self._waiting.popleft()
            self._num_waiting -= self._batch_size - room
            if not self._active:
                self._active_since = time.monotonic()
            self._active += 1
            return pieces

    def _finish(self, images: int) -> None:
        with self._changed:
            self._active -= 1
            self._images += images
            self._batches += 1
            if not self._active:
                self._busy_s += time.monotonic() - self._active_since
            self._changed.notify_all()

    def _answer(self, pieces: list[tuple[_Request, int, int]], predictions: Predictions) -> None:
        begin = 0
        for request, first, last in pieces:
            end = begin + last - first
            request.pieces[first] = predictions.rows(begin, end)
            begin = end
            with self._changed:
                request.labelled += last - first
                whole = request.labelled == len(request.images)
            if whole and not request.answer.done():
                request.answer.set_result(Predictions.join([request.pieces[place] for place in sorted(request.pieces)]))
