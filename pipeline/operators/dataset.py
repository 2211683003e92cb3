"""The data path on Ray Data, in its two shapes, and what is done again where a process died.

fused      units -> LabelUnits (an actor per core: reads, decodes, labels, publishes) -> commit records
two-stage  units -> ReadDecode (actors on CPUs) -> rows with pixels -> Label (actors on GPUs) -> rows with labels
                 -> UnitAssembly (here, in the driver: publishes) -> commit records

The first is for machines without a GPU. In the second batches fill across units. Blocks hold plain columns. Nothing is
tried again by Ray: a task whose process died gives no result, and its units are done once more when all others are
through, isolated from then on.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data import Dataset

from models.inference.classifier import Provider
from pipeline.config import SourceFormat
from pipeline.dest.plan import units_table
from pipeline.operators.fused import LabelUnits
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.staged import PIECE_ROWS, Label, ReadDecode, staged_columns
from pipeline.operators.stages import UnitSettings
from pipeline.operators.tasks import in_tasks, map_actors, pool
from pipeline.operators.units import Result, UnitAssembly, results_of
from pipeline.operators.watch import GpuWatch
from pipeline.session.attempts import MAX_ATTEMPTS, RunState
from pipeline.session.metrics import UnitMetrics
from pipeline.session.pools import Pools
from pipeline.session.stage_clock import StageClock
from pipeline.sources.unit import Unit
from pipeline.storage.storage import Storage

logger = logging.getLogger(__name__)

# The loss of a node is no attempt; but a run of which each pass loses one must come to an end.
MAX_PASSES = 100
# So many units that fail in one pass are given up at once: it is no matter of the units.
MAX_TRIED_AGAIN = 100
# One batch is copied in, one computed, one copied out.
GPU_IN_FLIGHT = 3
# Units that a fused actor has at a time where a request takes long: while one waits for its first image, or until its
# file is taken, another has the core. Those of loose images are small; of larger ones more would end unevenly.
REMOTE_UNITS = {SourceFormat.IMAGES: 4, SourceFormat.WEBDATASET: 2}


@dataclass(frozen=True, slots=True)
class Labelling:
    """All that a pass over units needs.

    Attributes:
        settings: What to do.
        model: With which model.
        pools: How many actors of what kind.
        state: Whether to stop.
        say: Takes lines for the run's log: that GPUs are idle, and why.
    """

    settings: UnitSettings
    model: ModelRef
    pools: Pools
    state: RunState
    say: Callable[[str], None]


def label_units(labelling: Labelling, units: Sequence[Unit], stopping: Callable[[], bool]) -> Iterator[Result]:
    """Label units and yield what became of each, as they finish; of those left when a run is stopped nothing.

    Args:
        labelling: What to do, and by what.
        units: With which.
        stopping: Tells whether the run is to stop.
    """
    one_pass = _staged if labelling.pools.decoders else _fused
    metrics = UnitMetrics(labelling.state.job, StageClock())
    left = {unit.number: unit for unit in units}
    reasons: dict[int, str] = {}
    attempts = 0
    for _ in range(MAX_PASSES):
        nodes = alive_nodes()
        failed = 0
        for result in one_pass(labelling, list(left.values()), isolate=attempts > 0):
            failed += bool(result.why)
            again = result.why and not result.stops and labelling.pools.decoders and failed <= MAX_TRIED_AGAIN
            if again:
                reasons[result.unit] = result.why
            elif left.pop(result.unit, None) is not None:
                yield result
        if not left:
            return
        # The error of a process that died holds its actor in a reference cycle, and the actor a CPU, also after the run.
        gc.collect()
        if stopping():
            return
        attempts += nodes <= alive_nodes()
        if attempts == MAX_ATTEMPTS:
            break
        for unit in left.values():
            metrics.begun(unit, attempts + 1)
    lost = f"{attempts} processes ended while they had it, also with images isolated"
    for number in left:
        yield Result(number, None, reasons.get(number, lost))


def alive_nodes() -> set[str]:
    """Return the ids of the nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _fused(labelling: Labelling, units: Sequence[Unit], *, isolate: bool) -> Iterator[Result]:
    job, pools = labelling, labelling.pools
    low, high = pools.actors[0], max(pools.actors[1], pools.growth)
    at_a_time = 1 if isolate else units_at_a_time(job.settings.source, job.settings.dest, job.settings.format)
    results = map_actors(
        _handed_over(units, 1 if isolate else high, isolate=isolate),
        LabelUnits,
        (job.settings, job.model, job.state, isolate),
        retries=0,
        compute=pool(low, high, at_a_time, isolate=isolate),
        batch_size=None,
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus,
    )
    for table in _tables(results):
        yield from results_of(table)


def _staged(labelling: Labelling, units: Sequence[Unit], *, isolate: bool) -> Iterator[Result]:
    job, pools = labelling, labelling.pools
    columns = staged_columns(job.settings)
    most = max(pools.decoders, pools.growth)
    handed_over = _handed_over(units, most, isolate=isolate)
    # A piece goes on when it is decoded: Ray Data would wait for the next five to make a block of 128 MB. It cuts what
    # is half as large again as this, so that full pieces go as they are.
    handed_over.context.target_max_block_size = int(0.7 * PIECE_ROWS) * 3 * job.settings.preprocessing.crop**2
    decoded = map_actors(
        handed_over,
        ReadDecode,
        (job.settings, job.state, isolate),
        retries=0,
        compute=pool(pools.decoders, most, isolate=isolate),
        batch_size=None,
        num_cpus=1,
    )
    in_flight = 1 if isolate or job.model.choice.provider is Provider.CPU else GPU_IN_FLIGHT
    labelled = map_actors(
        decoded,
        Label,
        (job.model, columns, isolate),
        retries=0,
        compute=pool(*pools.actors, in_flight, isolate=isolate),
        batch_size=max(PIECE_ROWS, job.model.batch_size),
        num_cpus=pools.actor_cpus,
        num_gpus=pools.actor_gpus,
    )
    clock = StageClock()
    metrics = UnitMetrics(job.state.job, clock)
    watch = GpuWatch(clock, pools, job.say)
    by_number = {unit.number: unit for unit in units}
    with UnitAssembly(job.settings, units, clock) as assembly:

        def noted(results: Iterator[Result]) -> Iterator[Result]:
            for result in results:
                if result.commit is not None:
                    metrics.done(by_number[result.unit], result.commit)
                yield result

        for table in _tables(labelled):
            yield from noted(assembly.add(table))
            watch.look()
        yield from noted(assembly.rest())


def units_at_a_time(source: Storage, dest: Storage, kind: SourceFormat) -> int:
    """Return how many units a fused actor has at a time: several where its core would wait for a store."""
    if source.is_local and dest.is_local:
        return 1
    return REMOTE_UNITS.get(kind, 1)


def _handed_over(units: Sequence[Unit], workers: int, *, isolate: bool) -> Dataset:
    """Return units as a dataset, of which a block is a task: one unit each where they are isolated."""
    tasks = [[unit] for unit in units] if isolate else in_tasks(units, workers)
    dataset = ray.data.from_blocks([units_table(task) for task in tasks])
    # Of this dataset alone. What a task lost is missed, and done again in the next pass.
    dataset.context.max_errored_blocks = -1
    dataset.context.execution_options.preserve_order = False
    # It would look a task's memory up as it begins and ends: 2 % of the time of a stage of short ones.
    dataset.context.memory_usage_poll_interval_s = None
    return dataset


def _tables(dataset: Dataset) -> Iterator[Any]:
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if table.num_rows:
            yield table
