"""What was answered, as rows of Parquet: taken on the event loop, hashed by a thread, and written by another.

No answer waits for it. What waits is bounded, in rows and in bytes of images; what does not fit, or cannot be written, is
dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256

import numpy as np
import pyarrow as pa

from models.errors import StorageError
from models.inference.predictions import Float32Array, Int32Array, Predictions
from pipeline.dest.prediction_log import LOG_FIELDS, write_part
from pipeline.dest.writer import CHUNK_ROWS, ROW_GROUP_ROWS, STATUS_OK, OutputSpec, Row, build_batch
from pipeline.storage.storage import Storage
from serve.model.backend import Labelled, Outcome
from serve.model.observed import REQUEST_ID

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


@dataclass(frozen=True, slots=True)
class _Answer:
    """One image and what was answered: no more of it than the row needs.

    Attributes:
        image: Encoded bytes.
        request_id: "" without one.
        time: Seconds since 1970.
        outcome: Without what the row does not need; its arrays are of the shape (top_k,).
    """

    image: bytes
    request_id: str
    time: float
    outcome: Outcome


class PredictionLog:
    """One model's answers of one replica. An `Observer`; the thread begins with it.

    Args:
        dest: A prediction log: see `pipeline.dest.prediction_log.begin_log`.
        labels: Name of each class.
        metadata: Of each part file.
        model: What the column `model` says: model, precision, decode mode and version.
        shard: What the column `shard` says: the model's name.
        top_k: Labels of each row.
    """

    def __init__(
        self,
        dest: Storage,
        labels: tuple[str, ...],
        metadata: dict[str, str],
        *,
        model: str,
        shard: str,
        top_k: int,
    ) -> None:
        self._dest = dest
        self._output = OutputSpec(labels, metadata, carried=LOG_FIELDS)
        self._schema = self._output.schema()
        self._model, self._shard, self._top_k = model, shard, min(top_k, len(labels))
        # Written by the event loop, and by the thread: so neither needs a lock.
        self._queue: deque[_Answer] = deque()
        self._bytes_put = self._bytes_taken = 0
        self._overflow = 0
        self.rows = 0
        self._failed: Counter[str] = Counter()
        # Of the next part file; of the thread.
        self._rows: list[tuple[Row, Labelled | None]] = []
        self._batches: list[pa.RecordBatch] = []
        self._count = self._size = 0
        self._since = self._warned = -WARNING_S
        self._writing: _Writing | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def __call__(self, images: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Take the answers of a request; returns at once."""
        size = sum(map(len, images))
        waiting = self._bytes_put - self._bytes_taken
        if len(self._queue) + len(images) > QUEUE_ROWS or waiting + size > QUEUE_BYTES:
            self._overflow += len(images)
            return
        self._bytes_put += size
        request_id, now, k = REQUEST_ID.get(), time.time(), self._top_k
        for image, outcome in zip(images, outcomes, strict=True):
            kept = outcome
            if isinstance(outcome, Labelled):
                ids, scores = outcome.label_ids[:k], outcome.scores[:k]
                kept = Labelled(outcome.width, outcome.height, ids, scores, accepted=outcome.accepted)
            self._queue.append(_Answer(image, request_id, now, kept))

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that were given up, by reason: queue_full, storage (it did not take them), internal (a fault of ours)."""
        return {"queue_full": self._overflow, "storage": self._failed["storage"], "internal": self._failed["internal"]}

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
                    self._settle(self._writing)
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
            self._size += len(answer.image)
            self._bytes_taken += len(answer.image)
            self._rows.append(self._row(answer))
            if len(self._rows) == CHUNK_ROWS:
                self._build()

    def _row(self, answer: _Answer) -> tuple[Row, Labelled | None]:
        outcome = answer.outcome
        labelled = outcome if isinstance(outcome, Labelled) else None
        carried = (
            None if labelled is None else labelled.accepted,
            answer.request_id,
            self._model,
            datetime.fromtimestamp(answer.time, UTC),
        )
        row = Row(
            shard=self._shard,
            key=sha256(answer.image).hexdigest(),
            status=STATUS_OK if isinstance(outcome, Labelled) else outcome.status,
            error=None if isinstance(outcome, Labelled) else str(outcome),
            width=outcome.width,
            height=outcome.height,
            carried=carried,
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
        seconds = time.monotonic() - self._since
        write = partial(write_part, self._dest, self._output, self._batches, seconds, self._size)
        self._writing = _Writing(write, self._count)
        self._begin()

    def _settle(self, writing: _Writing) -> None:
        """Count the rows of a part file, once it is written or is not."""
        writing.join()
        self._writing = None
        if writing.error is None:
            self.rows += writing.rows
        else:
            self._give_up(writing.error, writing.rows)

    def _begin(self) -> None:
        self._rows, self._batches, self._count, self._size = [], [], 0, 0

    def _give_up(self, err: Exception, rows: int) -> None:
        """Drop rows that could not be written, and say so once a minute."""
        is_ours = not isinstance(err, StorageError)
        self._failed["internal" if is_ours else "storage"] += rows
        if time.monotonic() - self._warned >= WARNING_S:
            self._warned = time.monotonic()
            dropped = sum(self.dropped.values())
            logger.warning(
                "prediction log: %d rows dropped so far: %s", dropped, err, exc_info=err if is_ours else None
            )


class _Writing(threading.Thread):
    """The write of one part file."""

    def __init__(self, write: Callable[[], None], rows: int) -> None:
        super().__init__(name="prediction-log-part", daemon=True)
        self._write = write
        self.rows = rows
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Write it, and keep what went wrong."""
        try:
            self._write()
        except Exception as err:  # noqa: BLE001 (`PredictionLog` looks at it)
            self.error = err
