"""The data path on Ray Data, in its two shapes, and the retry of units whose process died.

fused      units -> LabelUnits (an actor per core: reads, decodes, labels, publishes) -> commit records
two-stage  units -> ReadDecode (actors on CPUs) -> rows with pixels -> Label (actors on GPUs) -> rows with labels
                 -> UnitAssembly (here, in the driver: publishes) -> commit records

The fused shape is for machines without a GPU. In the two-stage shape batches fill across units. Blocks hold plain columns.
Ray retries nothing: a task whose process died gives no result. Its units are retried after all others, isolated from then
on.
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

# The loss of a node does not count as an attempt, but a run that loses one in every pass must end.
MAX_PASSES = 100
# Most failed units of one pass that are retried: where more fail, the units are not the cause.
MAX_RETRIED_UNITS = 100
# One batch is copied in, one computed, one copied out.
GPU_IN_FLIGHT = 3
# Units that a fused actor works on at a time where requests are slow: while one waits for its first image or for its
# upload, another has the core. Units of loose images are small; with more units of larger files the end would be uneven.
REMOTE_UNITS = {SourceFormat.IMAGES: 4, SourceFormat.WEBDATASET: 2}
# On a disk, so many small units that their publishing is worth an overlap.
LOCAL_UNITS = {SourceFormat.IMAGES: 2}


@dataclass(frozen=True, slots=True)
class Labelling:
    """What a pass over units needs.

    Attributes:
        settings: How to label.
        model: Model to label with.
        pools: Number and kind of the actors.
        state: Whether to stop.
        say: Takes lines for the run's log, such as the warning that GPUs are idle.
    """

    settings: UnitSettings
    model: ModelRef
    pools: Pools
    state: RunState
    say: Callable[[str], None]


def label_units(labelling: Labelling, units: Sequence[Unit], stopping: Callable[[], bool]) -> Iterator[Result]:
    """Label units and yield the result of each as it finishes. Units left when a run is stopped have no result.

    Args:
        labelling: How to label, and with which actors.
        units: Units to label.
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
            again = result.why and not result.stops and labelling.pools.decoders and failed <= MAX_RETRIED_UNITS
            if again:
                reasons[result.unit] = result.why
            elif left.pop(result.unit, None) is not None:
                yield result
        # The error of a lost task holds its actor in a reference cycle, and the actor a CPU, also after the run.
        gc.collect()
        if not left or stopping():
            return
        attempts += nodes <= alive_nodes()
        if attempts == MAX_ATTEMPTS:
            break
        for unit in left.values():
            metrics.begun(unit, attempts + 1)
    lost = f"{attempts} processes died while they labelled it, even with its images isolated"
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
    # A decoded piece goes on at once: Ray Data would wait for the next five to make a block of 128 MB. Ray Data splits
    # blocks of more than 1.5 times this size, so that full pieces stay whole.
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
    """Return how many units a fused actor works on at a time: several where its core would wait for storage."""
    return (LOCAL_UNITS if source.is_local and dest.is_local else REMOTE_UNITS).get(kind, 1)


def _handed_over(units: Sequence[Unit], workers: int, *, isolate: bool) -> Dataset:
    """Return units as a dataset with one block per task; isolated units have a task each."""
    tasks = [[unit] for unit in units] if isolate else in_tasks(units, workers)
    dataset = ray.data.from_blocks([units_table(task) for task in tasks])
    # For this dataset alone. Units of a failed task have no result, and are retried in the next pass.
    dataset.context.max_errored_blocks = -1
    dataset.context.execution_options.preserve_order = False
    # Ray Data would measure memory at the start and end of each task: 2 % of the time of a stage with short tasks.
    dataset.context.memory_usage_poll_interval_s = None
    return dataset


def _tables(dataset: Dataset) -> Iterator[Any]:
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if table.num_rows:
            yield table
