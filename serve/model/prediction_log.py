"""What was answered, as rows of Parquet: taken on the event loop, hashed by a thread, and written by another.

No answer waits for it. What waits is bounded, in rows and in bytes of images; what does not fit, or cannot be written, is
dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np
import pyarrow as pa

from models.errors import StorageError
from models.inference.predictions import Float32Array, Int32Array, Predictions
from pipeline.dest.prediction_log import LOG_FIELDS, write_part
from pipeline.dest.writer import CHUNK_ROWS, ROW_GROUP_ROWS, STATUS_OK, OutputSpec, Row, build_batch
from pipeline.storage.storage import Storage
from serve.model.outcomes import REQUEST_ID, Labelled, Outcome

logger = logging.getLogger(__name__)

# A part file is written when one of them is reached: so a replica that is killed loses a minute of rows.
PART_ROWS = ROW_GROUP_ROWS
PART_SECONDS = 60.0
# Of what waits to be hashed, or for a storage that does not take the last part file.
QUEUE_ROWS = 20_000
QUEUE_BYTES = 64 * 2**20
# How often the thread looks: a replica of 1,000 images/s has 5 MB of images to hash then.
PERIOD_S = 0.05
WARNING_S = 60.0
# Longest that the end of a replica waits for the last part file.
CLOSE_S = 5.0


# Why rows are given up: too many wait, the storage did not take them, or a fault of ours.
REASONS = ("queue_full", "storage", "internal")
# One image, its request's id, the time in seconds since 1970, and what was answered: no more of it than the row needs.
_Answer = tuple[bytes, str, float, Outcome]


class PredictionLog:
    """One model's answers of one replica; the thread begins with it.

    Args:
        dest: A prediction log: see `pipeline.dest.prediction_log.begin_log`.
        labels: Name of each class.
        metadata: Of each part file.
        model: What the column `model` says, `NAME:PRECISION:DECODE@VERSION`; the column `shard` has the name.
        top_k: Labels of each row.
        written: Counts rows that were; called by any thread.
        dropped: Counts rows that were given up, by one of `REASONS`; called by any thread.
    """

    def __init__(
        self,
        dest: Storage,
        labels: tuple[str, ...],
        metadata: dict[str, str],
        *,
        model: str,
        top_k: int,
        written: Callable[[int], None],
        dropped: Callable[[str, int], None],
    ) -> None:
        self._dest = dest
        self._output = OutputSpec(labels, metadata, carried=LOG_FIELDS)
        self._schema = self._output.schema()
        self._model, self._shard = model, model.partition(":")[0]
        self._top_k = min(top_k, len(labels))
        # Written by the event loop, and by the thread: so neither needs a lock.
        self._queue: deque[_Answer] = deque()
        self._bytes_put = self._bytes_taken = 0
        self._written, self._dropped = written, dropped
        # Of the next part file; of the thread.
        self._rows: list[tuple[Row, Labelled | None]] = []
        self._batches: list[pa.RecordBatch] = []
        self._count = self._size = 0
        self._since = self._warned = -WARNING_S
        self._writing: threading.Thread | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def __call__(self, images: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Take the images of a request and their outcomes; on the event loop, in microseconds."""
        size = sum(map(len, images))
        waiting = self._bytes_put - self._bytes_taken
        if len(self._queue) + len(images) > QUEUE_ROWS or waiting + size > QUEUE_BYTES:
            self._dropped("queue_full", len(images))
            return
        self._bytes_put += size
        request_id, now, k = REQUEST_ID.get(), time.time(), self._top_k
        for image, outcome in zip(images, outcomes, strict=True):
            kept = outcome
            if isinstance(outcome, Labelled):
                ids, scores = outcome.label_ids[:k], outcome.scores[:k]
                kept = Labelled(outcome.width, outcome.height, ids, scores, accepted=outcome.accepted)
            self._queue.append((image, request_id, now, kept))

    def close(self) -> None:
        """Write what there is, and stop; waits for CLOSE_S at most."""
        self._closed.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("prediction log: the last rows are lost, as %s takes too long", self._dest.describe())

    def _run(self) -> None:
        is_last = False
        while not (is_last and not self._queue and not self._count and self._writing is None):
            is_last = self._closed.wait(PERIOD_S)
            try:
                self._take()
                if self._writing is not None and (is_last or not self._writing.is_alive()):
                    self._writing.join()
                    self._writing = None
                is_due = self._count >= PART_ROWS or time.monotonic() - self._since >= PART_SECONDS
                if self._count and self._writing is None and (is_due or is_last):
                    self._write()
            except Exception as err:  # noqa: BLE001 (whatever it is, answers go on, and so does the log)
                self._give_up(err, self._count)
                self._begin()

    def _take(self) -> None:
        """Make rows of what waits, up to a part file."""
        while self._queue and self._count < PART_ROWS:
            answer = self._queue.popleft()
            if not self._count:
                self._since = time.monotonic()
            self._count += 1
            self._size += len(answer[0])
            self._bytes_taken += len(answer[0])
            self._rows.append(self._row(*answer))
            if len(self._rows) == CHUNK_ROWS:
                self._build()

    def _row(self, image: bytes, request_id: str, seconds: float, outcome: Outcome) -> tuple[Row, Labelled | None]:
        labelled = outcome if isinstance(outcome, Labelled) else None
        accepted = None if labelled is None else labelled.accepted
        row = Row(
            shard=self._shard,
            key=sha256(image).hexdigest(),
            status=STATUS_OK if isinstance(outcome, Labelled) else outcome.status,
            error=None if isinstance(outcome, Labelled) else str(outcome),
            width=outcome.width,
            height=outcome.height,
            carried=(accepted, request_id, self._model, datetime.fromtimestamp(seconds, UTC)),
        )
        return row, labelled

    def _build(self) -> None:
        """Make a batch of the rows: it takes a tenth of the memory."""
        rows, self._rows = self._rows, []
        found = [labelled for _, labelled in rows if labelled is not None]
        ids: Int32Array = np.array([one.label_ids for one in found], np.int32).reshape(-1, self._top_k)
        scores: Float32Array = np.array([one.scores for one in found], np.float32).reshape(-1, self._top_k)
        predictions = Predictions(ids, scores)
        self._batches.append(build_batch([row for row, _ in rows], predictions, self._output, self._schema))

    def _write(self) -> None:
        """Begin to write a part file; meanwhile rows of the next one are made."""
        if self._rows:
            self._build()
        part = (self._batches, time.monotonic() - self._since, self._size)
        self._writing = threading.Thread(
            target=self._write_part, args=(part, self._count), name="prediction-log-part", daemon=True
        )
        self._writing.start()
        self._begin()

    def _write_part(self, part: tuple[list[pa.RecordBatch], float, int], rows: int) -> None:
        try:
            write_part(self._dest, self._output, *part)
        except Exception as err:  # noqa: BLE001 (whatever it is, the log goes on)
            self._give_up(err, rows)
        else:
            self._written(rows)

    def _begin(self) -> None:
        self._rows, self._batches, self._count, self._size = [], [], 0, 0

    def _give_up(self, err: Exception, rows: int) -> None:
        """Drop rows that could not be written, and say so once a minute."""
        is_ours = not isinstance(err, StorageError)
        self._dropped("internal" if is_ours else "storage", rows)
        if time.monotonic() - self._warned >= WARNING_S:
            self._warned = time.monotonic()
            logger.warning("prediction log: %d rows dropped: %s", rows, err, exc_info=err if is_ours else None)
