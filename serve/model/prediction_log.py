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
from pipeline.dest.fingerprint import class_names, file_metadata
from pipeline.dest.prediction_log import CLASS_NAMES_KEY, LOG_FIELDS, write_part
from pipeline.dest.writer import CHUNK_ROWS, ROW_GROUP_ROWS, STATUS_OK, OutputSpec, Row, build_batch
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.model.outcomes import REQUEST_ID, Labelled, Outcome
from serve.model.settled import Settled

logger = logging.getLogger(__name__)

# A part file is written when one of them is reached: so a replica that is killed loses a minute of rows.
PART_ROWS = ROW_GROUP_ROWS
PART_SECONDS = 60.0
# Of what waits to be hashed, or for a storage that does not take the last part file.
QUEUE_ROWS = 20_000
QUEUE_BYTES = 64 * 2**20
# How often the thread looks: a replica of 1,000 images/s has 20 MB of images to hash then.
PERIOD_S = 0.2
WARNING_S = 60.0
# Longest that the end of a replica waits for the last part file.
CLOSE_S = 5.0
# One image, its request's id, the time in seconds since 1970, and what was answered: no more of it than the row needs.
_Answer = tuple[bytes, str, float, Outcome]


class PredictionLog:
    """One model's answers of one replica. Opens the log's storage, and starts the thread.

    Args:
        config: Where the log is: see `pipeline.dest.prediction_log.begin_log`.
        settled: The model.
        labels: Name of each class.
        count: Counts rows that were given up, by the reason: too many wait, the storage did not take them, or a fault of
            ours. None for those that were written. Called by any thread.

    Attributes:
        top_k: Labels of each row: outcomes have at least so many.
    """

    def __init__(
        self, config: ServeConfig, settled: Settled, labels: tuple[str, ...], count: Callable[[str | None, int], None]
    ) -> None:
        assert config.prediction_log is not None, "the caller has looked"
        spec, choice = settled.spec, settled.choice
        metadata = file_metadata(spec, choice, config.decode, settled.calibration)
        metadata[CLASS_NAMES_KEY] = class_names(labels)
        self.top_k = min(config.top_k, len(labels))
        self._dest = open_storage(config.prediction_log)
        self._output = OutputSpec(labels, metadata, carried=LOG_FIELDS)
        self._schema = self._output.schema()
        # What the columns `shard` and `model` say.
        self._name, artifact = spec.name, spec.artifact(choice.precision).sha256
        self._model = f"{spec.name}:{choice.arithmetic}:{config.decode.value}@{artifact[:8]}"
        self._count = count
        for reason in (None, "queue_full", "storage", "internal"):
            count(reason, 0)
        # One is written by the event loop, one by the thread: so neither needs a lock.
        self._queue: deque[_Answer] = deque()
        self._bytes_put = self._bytes_taken = 0
        # Of the next part file; of the thread.
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._size = 0
        self._since = self._warned = -WARNING_S
        self._writer = threading.Thread()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def __call__(self, images: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Take the images of a request and their outcomes; on the event loop, in microseconds."""
        size = sum(map(len, images))
        waiting = self._bytes_put - self._bytes_taken
        if len(self._queue) + len(images) > QUEUE_ROWS or waiting + size > QUEUE_BYTES:
            self._count("queue_full", len(images))
            return
        self._bytes_put += size
        request_id, now, k = REQUEST_ID.get(), time.time(), self.top_k
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
        while not is_last or self._queue or self._rows or self._writer.is_alive():
            is_last = self._closed.wait(PERIOD_S)
            try:
                self._take()
                if is_last and self._writer.is_alive():
                    self._writer.join()
                seconds = time.monotonic() - self._since
                is_due = is_last or self._rows >= PART_ROWS or seconds >= PART_SECONDS
                if self._rows and is_due and not self._writer.is_alive():
                    part = (self._rows, self._batches, seconds, self._size)
                    self._writer = threading.Thread(target=self._write, args=part, daemon=True)
                    self._writer.start()
                    self._begin()
            except Exception as err:  # noqa: BLE001 (whatever it is, answers go on, and so does the log)
                self._give_up(err, self._rows)
                self._begin()

    def _begin(self) -> None:
        self._batches, self._rows, self._size = [], 0, 0

    def _take(self) -> None:
        """Make rows of what waits, up to a part file, in batches: they take a tenth of the memory."""
        while number := min(len(self._queue), CHUNK_ROWS, PART_ROWS - self._rows):
            if not self._rows:
                self._since = time.monotonic()
            answers = [self._queue.popleft() for _ in range(number)]
            size = sum(len(image) for image, *_ in answers)
            self._bytes_taken += size
            self._size += size
            self._rows += number
            self._batches.append(self._batch(answers))

    def _batch(self, answers: Sequence[_Answer]) -> pa.RecordBatch:
        rows, labelled = [], []
        for image, request_id, seconds, outcome in answers:
            status, error, accepted = STATUS_OK, None, None
            if isinstance(outcome, Labelled):
                labelled.append(outcome)
                accepted = outcome.accepted
            else:
                status, error = outcome.status, str(outcome)
            carried = (accepted, request_id, self._model, datetime.fromtimestamp(seconds, UTC))
            key = sha256(image).hexdigest()
            rows.append(Row(self._name, key, status, error, outcome.width, outcome.height, carried))
        ids: Int32Array = np.array([one.label_ids for one in labelled], np.int32).reshape(-1, self.top_k)
        scores: Float32Array = np.array([one.scores for one in labelled], np.float32).reshape(-1, self.top_k)
        return build_batch(rows, Predictions(ids, scores), self._output, self._schema)

    def _write(self, rows: int, batches: Sequence[pa.RecordBatch], seconds: float, size: int) -> None:
        """Write a part file, in a thread; meanwhile rows of the next one are made."""
        try:
            write_part(self._dest, self._output, batches, seconds, size)
        except Exception as err:  # noqa: BLE001 (whatever it is, the log goes on)
            self._give_up(err, rows)
        else:
            self._count(None, rows)

    def _give_up(self, err: Exception, rows: int) -> None:
        """Drop rows that could not be written, and say so once a minute."""
        is_ours = not isinstance(err, StorageError)
        self._count("internal" if is_ours else "storage", rows)
        if time.monotonic() - self._warned >= WARNING_S:
            self._warned = time.monotonic()
            logger.warning("prediction log: %d rows dropped: %s", rows, err, exc_info=err if is_ours else None)
