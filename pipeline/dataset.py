"""The data path on Ray Data, in its two shapes. Lazy: nothing runs until the results are consumed.

fused      units -> [actor: read, decode, label, publish] -> commit records
two-stage  units -> [actor: read, decode, publish] -> commit records
                              pixels │ ▲ labels
                                     ▼ │
                           [actor on a card: label]

The first is for machines without a GPU. In the second CPUs decode and cards label; blocks of pixels from all decoders
fill batches together, whatever units they are of. Both run `pipeline.stages.label_unit`, so both write the same bytes,
and of both the driver sees nothing but units' names and their commit records.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray.data

from models.errors import ShardlabelError
from models.memory import keep_freed_memory
from pipeline.commits import Commit
from pipeline.metrics import UnitMetrics
from pipeline.model_client import ModelClient
from pipeline.model_pool import model_pool
from pipeline.model_ref import ModelRef
from pipeline.plan import Unit
from pipeline.pools import Pools
from pipeline.runstate import StopFlag
from pipeline.stage_clock import StageClock
from pipeline.stages import LabelBatches, UnitSettings, label_here, label_unit
from pipeline.tasks import in_tasks

logger = logging.getLogger(__name__)

# A unit that brought down its process so often is given up, and fails the run.
MAX_ATTEMPTS = 4
# Images that go to a card together: 19 MB of pixels. Fewer cost a call more often, more wait longer for their last one.
BLOCK_SIZE = 128
# Units that a decoder has at a time: one is decoded while another is written, or waits for its last labels.
UNITS_PER_DECODER = 2


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a unit: a commit record, a failure, or neither where the run is stopping."""

    unit: int
    commit: Commit | None = None
    failure: str | None = None


RunUnits = Callable[[Sequence[Unit]], Iterator[Result]]


@contextmanager
def labelling(settings: UnitSettings, model: ModelRef, pools: Pools, say: Callable[[str], None]) -> Iterator[RunUnits]:
    """Have actors ready that hold the model, where they are not those that decode.

    Args:
        settings: What to do.
        model: With which model.
        pools: How many actors of what kind.
        say: Takes lines for the run's log: that cards are idle, and why.

    Yields:
        A function that labels units, and yields what became of each, as they finish.
    """
    if pools.decoders == 0:
        yield lambda units: _run(units, pools, (settings, model, pools, None))
        return
    num_classes = len(settings.output.labels)
    settings = replace(settings, batch_size=min(settings.batch_size, BLOCK_SIZE))
    with model_pool(model, num_classes, pools, say, embeddings=settings.embeddings) as actors:
        yield lambda units: _run(units, pools, (settings, model, pools, actors))


def _run(units: Sequence[Unit], pools: Pools, arguments: tuple[Any, ...]) -> Iterator[Result]:
    workers = pools.decoders or max(pools.actors[1], pools.growth)
    # -> unit; a block is a task
    blocks = [
        pa.table({"unit": pa.array([pickle.dumps(unit) for unit in task], pa.binary())})
        for task in in_tasks(units, workers)
    ]
    dataset = ray.data.from_blocks(blocks)
    results = dataset.map_batches(
        LabelUnits,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=_pool(pools),
        num_cpus=1 if pools.decoders else pools.actor_cpus,
        num_gpus=0 if pools.decoders else pools.actor_gpus,
    )  # -> result
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for value in batch.column("result"):
            yield pickle.loads(value.as_py())


def _pool(pools: Pools) -> ray.data.ActorPoolStrategy:
    low, high = (pools.decoders, pools.decoders) if pools.decoders else pools.actors
    high = max(high, pools.growth)
    if not pools.decoders:
        return ray.data.ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=2)
    return ray.data.ActorPoolStrategy(
        min_size=low,
        max_size=high,
        max_tasks_in_flight_per_actor=UNITS_PER_DECODER + 1,
        max_concurrent_calls_per_actor=UNITS_PER_DECODER,
        enable_true_multi_threading=True,
    )


class LabelUnits:
    """Actor of both shapes: takes whole units to their commit records.

    Args:
        settings: What to do.
        model: With which model.
        pools: Which part of a card it has, if any.
        actors: Handles of those that hold the model; None to hold it here.
    """

    def __init__(self, settings: UnitSettings, model: ModelRef, pools: Pools, actors: list[Any] | None) -> None:
        self._settings = settings
        self._state = model.state
        self._stop = StopFlag(model.state)
        self._clock = StageClock()
        self._metrics = UnitMetrics(model.state.job, self._clock)
        self._label: LabelBatches
        if actors is None:
            classifier = model.load(len(settings.output.labels), pools)
            self._label = label_here(classifier, self._clock, embeddings=settings.embeddings)
        else:
            self._label = ModelClient(actors, self._clock, threading.Lock()).label
        keep_freed_memory()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Label each unit of the block; returns one pickled `Result` per unit."""
        results = [self._do(pickle.loads(value.as_py())) for value in batch.column("unit")]
        return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.binary())})

    def _do(self, unit: Unit) -> Result:
        if self._stop.is_set():
            return Result(unit.number)
        attempt = self._state.begin(unit.number)
        self._metrics.begun(unit, attempt)
        if attempt > MAX_ATTEMPTS:
            return Result(unit.number, failure=_given_up(unit))
        try:
            commit = label_unit(self._settings, unit, self._label, careful=attempt > 1, clock=self._clock)
        except ShardlabelError as err:
            self._metrics.failed(unit, str(err))
            return Result(unit.number, failure=str(err))
        except Exception as err:
            logger.exception("unit=%d failed", unit.number)
            return Result(unit.number, failure=_unforeseen(unit, err))
        self._state.end(unit.number)
        self._metrics.done(unit, commit)
        return Result(unit.number, commit)


def _unforeseen(unit: Unit, err: Exception) -> str:
    return f"unit {unit.number} ({unit.slices[0].shard}): unforeseen {type(err).__name__}: {err}"


def _given_up(unit: Unit) -> str:
    names = ", ".join(piece.shard for piece in unit.slices[:3])
    return f"unit {unit.number} ({names}) brought down its process {MAX_ATTEMPTS} times, also with decoding isolated"
