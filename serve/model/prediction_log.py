"""What was answered, as rows of Parquet: taken on the event loop, and written by a thread.

No answer waits for it. The rows that wait are bounded; what does not fit, or cannot be written, is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from models.errors import StorageError
from models.inference.predictions import Float32Array, Int32Array, Predictions
from pipeline.dest.fingerprint import class_names, file_metadata
from pipeline.dest.prediction_log import CLASS_NAMES_KEY, LOG_FIELDS, write_part
from pipeline.dest.writer import CHUNK_ROWS, ROW_GROUP_ROWS, STATUS_OK, OutputSpec, Row, build_batch
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.model.batcher import Item
from serve.model.outcomes import REQUEST_ID, Labelled, Outcome
from serve.model.settled import Settled

logger = logging.getLogger(__name__)

# A part file is written when one of them is reached: so a replica that is killed loses a minute of rows.
PART_ROWS = ROW_GROUP_ROWS
PART_SECONDS = 60.0
QUEUE_ROWS = 2 * PART_ROWS  # of rows that wait, also while the storage does not take a part file; 1 kB each
PERIOD_S = 0.2
CLOSE_S = 5.0  # longest that the end of a replica waits for the last part file


class _Answer(NamedTuple):
    """One row, with no more of what was answered than it needs."""

    key: str
    size: int  # of the image, bytes
    request_id: str
    time: float  # seconds since 1970
    outcome: Outcome


class PredictionLog:
    """One model's answers of one replica. Opens the log's storage, and starts the thread.

    Args:
        config: Where the log is: see `pipeline.dest.prediction_log.begin_log`.
        settled: The model.
        labels: Name of each class.
        count: Counts rows that were given up, by the reason: too many wait, the storage did not take them, or a fault of
            ours. None for those that were written. Called by any thread.
    """

    def __init__(
        self, config: ServeConfig, settled: Settled, labels: tuple[str, ...], count: Callable[[str | None, int], None]
    ) -> None:
        assert config.prediction_log is not None, "the caller has looked"
        spec, choice = settled.spec, settled.choice
        metadata = file_metadata(spec, choice, config.decode, settled.calibration)
        metadata[CLASS_NAMES_KEY] = class_names(labels)
        self.top_k = min(config.top_k, len(labels))  # labels of each row: outcomes have at least so many
        self._dest = open_storage(config.prediction_log)
        self._output = OutputSpec(labels, metadata, carried=LOG_FIELDS)
        self._schema = self._output.schema()
        # What the columns `shard` and `model` say.
        self._name, artifact = spec.name, spec.artifact(choice.precision).sha256
        self._model = f"{spec.name}:{choice.arithmetic}:{config.decode.value}@{artifact[:8]}"
        self._count = count
        for reason in (None, "queue_full", "storage", "internal"):
            count(reason, 0)
        self._queue: deque[_Answer] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def __call__(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """Take the images of a request, hashed, and their outcomes; on the event loop, in microseconds."""
        if len(self._queue) + len(items) > QUEUE_ROWS:
            self._count("queue_full", len(items))
            return
        request_id, now, k = REQUEST_ID.get(), time.time(), self.top_k
        for item, outcome in zip(items, outcomes, strict=True):
            kept = outcome
            if isinstance(outcome, Labelled):
                # Copies: those of the whole batch, of any k, are behind them.
                ids, scores = outcome.label_ids[:k].copy(), outcome.scores[:k].copy()
                kept = Labelled(outcome.width, outcome.height, ids, scores, accepted=outcome.accepted)
            self._queue.append(_Answer(item.digest, len(item.payload), request_id, now, kept))

    def close(self) -> None:
        """Write what there is, and stop; waits for CLOSE_S at most."""
        self._closed.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("prediction log: the last rows are lost, as %s takes too long", self._dest.describe())

    def _run(self) -> None:
        is_last, since = False, time.monotonic()
        while not is_last or self._queue:
            is_last = self._closed.wait(PERIOD_S)
            rows, seconds = min(len(self._queue), PART_ROWS), time.monotonic() - since
            if rows and (is_last or rows == PART_ROWS or seconds >= PART_SECONDS):
                self._write([self._queue.popleft() for _ in range(rows)], seconds)
            elif rows:
                continue
            since = time.monotonic()

    def _batch(self, answers: Sequence[_Answer]) -> pa.RecordBatch:
        rows, labelled = [], []
        for key, _, request_id, seconds, outcome in answers:
            status, error, accepted = STATUS_OK, None, None
            if isinstance(outcome, Labelled):
                labelled.append(outcome)
                accepted = outcome.accepted
            else:
                status, error = outcome.status, str(outcome)
            carried = (accepted, request_id, self._model, datetime.fromtimestamp(seconds, UTC))
            rows.append(Row(self._name, key, status, error, outcome.width, outcome.height, carried))
        ids: Int32Array = np.array([one.label_ids for one in labelled], np.int32).reshape(-1, self.top_k)
        scores: Float32Array = np.array([one.scores for one in labelled], np.float32).reshape(-1, self.top_k)
        return build_batch(rows, Predictions(ids, scores), self._output, self._schema)

    def _write(self, answers: Sequence[_Answer], seconds: float) -> None:
        """Write a part file, or drop its rows and say so."""
        try:
            chunks = (answers[first : first + CHUNK_ROWS] for first in range(0, len(answers), CHUNK_ROWS))
            batches = [self._batch(chunk) for chunk in chunks]
            write_part(self._dest, self._output, batches, seconds, sum(each.size for each in answers))
            self._count(None, len(answers))
        except Exception as err:
            is_ours = not isinstance(err, StorageError)
            self._count("internal" if is_ours else "storage", len(answers))
            text = "prediction log: %d rows dropped: %s"
            logger.warning(text, len(answers), err, exc_info=err if is_ours else None)
