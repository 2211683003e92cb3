"""The one operator of the fused shape: an actor that turns whole units into commit records."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager

import pyarrow as pa

from models.errors import InferenceError
from models.malloc import tune_malloc
from pipeline.dest.plan import units_of
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.stages import LabelBatches, UnitSettings, label_here, label_isolated, label_unit
from pipeline.operators.units import Result, results_table, why_failed
from pipeline.operators.watchdog import WatchedLabeller
from pipeline.session.attempts import MAX_ATTEMPTS, RunState, StopFlag
from pipeline.session.metrics import UnitMetrics
from pipeline.session.stage_clock import Stage, StageClock
from pipeline.session.worker import prepare_worker
from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)


class DecodingTurn(AbstractContextManager[None]):
    """A lock for decoding that subtracts the time spent waiting for it from the seconds counted as decoding.

    Args:
        lock: Shared with labelling.
        clock: Counts the time until images come as decoding, which includes the waiting.
    """

    def __init__(self, lock: threading.Lock, clock: StageClock) -> None:
        self._lock = lock
        self._clock = clock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            began = time.perf_counter()
            self._lock.acquire()
            self._clock.add(Stage.DECODE, began - time.perf_counter())

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class LabelUnits:
    """Operator: reads, decodes, labels and publishes units; may be called by several threads at a time.

    Args:
        settings: How to label.
        model: Model to label with.
        state: Whether to stop.
        isolate: Whether to decode and label in child processes that may die or hang.
    """

    def __init__(self, settings: UnitSettings, model: ModelRef, state: RunState, isolate: bool) -> None:
        self._settings = settings
        self._isolate = isolate
        self._stop = StopFlag(state)
        self._clock = StageClock()
        prepare_worker()
        self._metrics = UnitMetrics(state.job, self._clock)
        labeller = WatchedLabeller(
            model.loader()(), settings.preprocessing.crop, settings.batch_size, settings.image_timeout_s
        )
        # Only one of several units computes at a time: memory is that of one image, and there is one core.
        turn = threading.Lock()
        self._turn = DecodingTurn(turn, self._clock)
        self._label: LabelBatches = label_here(labeller, self._clock, embeddings=settings.embeddings, turn=turn)
        self._label_isolated: LabelBatches = label_isolated(
            model.loader, labeller.timeout_s, self._clock, embeddings=settings.embeddings
        )
        tune_malloc()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label each unit of the block; when the run is to stop, skip the units that have not begun."""
        return results_table([self._do(unit) for unit in units_of([table]) if not self._stop.is_set()])

    def _do(self, unit: Unit) -> Result:
        isolate, why = self._isolate, ""
        for _ in range(MAX_ATTEMPTS):
            label = self._label_isolated if isolate else self._label
            try:
                commit = label_unit(self._settings, unit, label, isolate=isolate, clock=self._clock, turn=self._turn)
            except Exception as err:
                logger.exception("unit=%d failed", unit.number)
                why, stops = why_failed(err)
                if stops:
                    break
                isolate = isolate or isinstance(err, InferenceError)
            else:
                self._metrics.done(unit, commit)
                return Result(unit.number, commit)
        return Result(unit.number, None, why, stops)
