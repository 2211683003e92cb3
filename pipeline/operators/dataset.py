"""The data path on Ray Data, in its two shapes. Lazy: nothing runs until the results are consumed.

fused      units -> [actor: read, decode, label, publish] -> commit records
two-stage  units -> [actor: read, decode, publish] -> commit records
                              pixels │ ▲ labels
                                     ▼ │
                           [actor on a GPU: label]

The first is for machines without a GPU. In the second CPUs decode and GPUs label; blocks of pixels from all decoders
fill batches together, whatever units they are of. Both run `pipeline.operators.stages.label_unit`, so both write the
same bytes, and of both the driver sees nothing but units' names and their commit records.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from models.errors import InferenceError, ShardlabelError
from models.malloc import tune_malloc
from pipeline.dest.commits import Commit
from pipeline.operators.model_client import ModelClient
from pipeline.operators.model_pool import model_pool
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.stages import LabelBatches, UnitSettings, label_here, label_isolated, label_unit
from pipeline.operators.tasks import in_tasks
from pipeline.operators.watchdog import WatchedLabeller
from pipeline.session.attempts import StopFlag, TaskLog
from pipeline.session.metrics import UnitMetrics
from pipeline.session.pools import Pools
from pipeline.session.stage_clock import StageClock
from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)

# A unit fails that brought down its process so often, or raised something unexpected.
MAX_ATTEMPTS = 4
# The loss of a node is no attempt; but a unit that so many processes began must come to an end.
MAX_BEGUN = 100
# Images that go to a GPU together: 19 MB of pixels. Fewer cost a call more often, more wait longer for their last one.
BLOCK_SIZE = 128
# Units that a decoder has at a time: one is decoded while another is written, or waits for its last labels.
UNITS_PER_DECODER = 2


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a unit: a commit record, a failure, or neither where the run is stopping.

    Attributes:
        commit: Of a finished unit.
        failed: Name of a unit that failed, with its shards.
        why: It failed.
        stops: Other units would fail too.
    """

    commit: Commit | None = None
    failed: str | None = None
    why: str = ""
    stops: bool = False


RunUnits = Callable[[Sequence[Unit]], Iterator[Result]]


@contextmanager
def labelling(settings: UnitSettings, model: ModelRef, pools: Pools, say: Callable[[str], None]) -> Iterator[RunUnits]:
    """Have actors ready that hold the model, where they are not those that decode.

    Args:
        settings: What to do.
        model: With which model.
        pools: How many actors of what kind.
        say: Takes lines for the run's log: that GPUs are idle, and why.

    Yields:
        A function that labels units, and yields what became of each, as they finish.
    """
    if pools.decoders == 0:
        yield lambda units: _run(units, pools, (settings, model, pools, None))
        return
    settings = replace(settings, batch_size=min(settings.batch_size, BLOCK_SIZE))
    with model_pool(model, settings, pools, say) as actors:
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
        pools: Which part of a GPU it has, if any.
        actors: Handles of those that hold the model; None to hold it here.
    """

    def __init__(self, settings: UnitSettings, model: ModelRef, pools: Pools, actors: list[Any] | None) -> None:
        self._settings = settings
        self._state = model.state
        self._node = ray.get_runtime_context().get_node_id()
        self._stop = StopFlag(model.state)
        self._clock = StageClock()
        self._metrics = UnitMetrics(model.state.job, self._clock)
        self._label: LabelBatches
        self._label_isolated: LabelBatches
        if actors is None:
            loader = partial(model.loader, len(settings.output.labels), pools)
            labeller = WatchedLabeller(
                loader()(), settings.preprocessing.crop, settings.batch_size, settings.image_timeout_s
            )
            self._label = label_here(labeller, self._clock, embeddings=settings.embeddings)
            self._label_isolated = label_isolated(
                loader, labeller.timeout_s, self._clock, embeddings=settings.embeddings
            )
        else:
            self._label = self._label_isolated = ModelClient(actors, self._clock, threading.Lock()).label
        tune_malloc()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Label each unit of the block; returns one pickled `Result` per unit."""
        units = [pickle.loads(value.as_py()) for value in batch.column("unit")]
        log = TaskLog(self._state, units[0].number, self._node)
        results = [self._do(unit, log) for unit in units]
        log.end()
        return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.binary())})

    def _do(self, unit: Unit, log: TaskLog) -> Result:
        if self._stop.is_set():
            return Result()
        log.begin(unit.number)
        begun, deaths = log.begun(unit.number), log.deaths(unit.number)
        self._metrics.begun(unit, begun)
        if begun > MAX_BEGUN:
            return self._failed(unit, f"{MAX_BEGUN} processes that had it were lost, most of them with their nodes")
        why = f"{deaths} processes ended while they had it, also with images isolated"
        # After a death all of the task: another image like the one at fault costs no second process then.
        isolate = log.deaths() > 0
        for _ in range(deaths, MAX_ATTEMPTS):
            label = self._label_isolated if isolate else self._label
            try:
                commit = label_unit(self._settings, unit, label, isolate=isolate, clock=self._clock)
            except Exception as err:
                logger.exception("unit=%d failed", unit.number)
                why = str(err) if isinstance(err, ShardlabelError) else f"unexpected {type(err).__name__}: {err}"
                if _is_of_all(err):
                    return self._failed(unit, why, stops=True)
                isolate = isolate or isinstance(err, InferenceError)
            else:
                self._metrics.done(unit, commit)
                return Result(commit)
        return self._failed(unit, why)

    def _failed(self, unit: Unit, why: str, *, stops: bool = False) -> Result:
        self._metrics.failed(unit, why)
        names = [piece.shard for piece in unit.slices[:3]] + ["..."] * (len(unit.slices) > 3)
        return Result(failed=f"unit {unit.number} ({', '.join(names)})", why=why, stops=stops)


def _is_of_all(err: Exception) -> bool:
    """Tell whether other units would meet an error too: storage that fails for good, a full disk, no actor any more."""
    if isinstance(err, OSError):
        return err.errno is not None
    return isinstance(err, ShardlabelError) and not isinstance(err, InferenceError)
