"""Run a labelling job: plan once, label what is not finished, keep a record of each unit. Safe to repeat."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.calibration import Calibration
from models.decode.decode import ImageLimits
from models.inference.classifier import Classifier, DeviceChoice
from models.spec import ModelSpec
from pipeline.caller import caller_as_before, stop_on_signal
from pipeline.config import LabelConfig, batch_size
from pipeline.dest.commits import Totals
from pipeline.dest.fingerprint import choose_as_begun, file_metadata, fingerprint, rows_id
from pipeline.dest.growth import planned_first
from pipeline.dest.lease import Lease
from pipeline.dest.plan import SINGLE_SHARD_UNITS, SUMMARY_FILE, iter_units
from pipeline.dest.resume import ResumeState, prepare
from pipeline.dest.writer import OutputSpec
from pipeline.error_budget import ErrorBudget
from pipeline.evenness import busy_share, unit_bytes
from pipeline.operators.model_ref import ModelRef, load_model, model_file, settle_calibration, settle_model
from pipeline.operators.stages import UnitSettings, count_samples
from pipeline.progress import ProgressPrinter
from pipeline.quantities import many_text
from pipeline.session.connect import Cluster, connect
from pipeline.session.metrics import RunGauges, job_name
from pipeline.session.pools import plan_pools
from pipeline.session.shared_disk import check_disks
from pipeline.sources import reader
from pipeline.sources.source import Source, in_part, open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage, open_storage
from pipeline.summary import RunReport, Tally, write_summary

if TYPE_CHECKING:
    from pipeline.session.attempts import RunState

logger = logging.getLogger(__name__)

# Units in a window, which Ray Data gets at a time, so that the driver's memory does not grow with the plan.
WINDOW_UNITS = 4096
# Between two windows the pool drains and restarts, which takes some seconds. So many units per reading process and
# window keep that below 1 % of the time. A cluster with hundreds of such processes has a driver with memory for the
# larger window: 10 kB per unit.
UNITS_PER_ACTOR = 128
MAX_WINDOW_UNITS = 65_536
# So many units that fail one by one have a common cause, so the run stops.
MAX_FAILED_UNITS = 100
CLEAR_S = 5.0

# Chooses from all slices of SOURCE; the second argument counts a slice's samples up to a number.
Pick = Callable[[Iterator[Slice], Callable[[Slice, int], int]], Iterator[Slice]]


@caller_as_before()
def run(config: LabelConfig, *, started: float | None = None, pick: Pick | None = None) -> RunReport:
    """Label every image of SOURCE that DEST does not hold yet.

    Args:
        config: Settings.
        started: `time.perf_counter()` when the command began, for the report.
        pick: Chooses what to label, for a dry run into an empty DEST.

    Raises:
        ConfigError: Settings are invalid, or differ from those that DEST was started with.
        SourceError: SOURCE or DEST cannot be used, or SOURCE has changed since DEST was started.
        ModelError: The model cannot be fetched or used.
        StorageError: Storage failed during planning.
    """
    started = time.perf_counter() if started is None else started
    config, spec, labels = settle_model(config)
    dest = open_storage(config.output)
    source = open_source(config.source, config.format, exclude=dest)
    address = config.address or os.environ.get("RAY_ADDRESS")
    cluster = connect(address) if address else None
    try:
        check_disks(cluster, source.base, dest, is_shared=config.shared_filesystem)
        has_gpu = cluster.gpus > 0 if cluster else has_local_gpu()
        config, choice = choose_as_begun(config, spec, dest, has_gpu=has_gpu)
        calibration = settle_calibration(config.calibration, spec, choice, config.decode)
        path = model_file(spec, choice)
        with Lease(dest, _wait_aloud(config) if config.append else None) as lease, ThreadPoolExecutor(1) as background:
            if config.append:  # list again: meanwhile shards may have come, and another run may have planned them
                source = open_source(config.source, config.format, exclude=dest)
            must_match = fingerprint(config, source, spec, choice, labels, calibration)
            settings = replace(
                unit_settings(config, source, spec, choice, labels, calibration),
                token=lease.token,
                rows_id=rows_id(must_match),
            )
            count = partial(count_samples, settings)
            listed = partial(reader.slices, in_part(source, *config.part_of()), manifests=config.uri_column is not None)
            slices = listed if pick is None else lambda: pick(listed(), count)
            work = prepare(config, dest, must_match, source, slices, count, lease.check)
            printer = ProgressPrinter(
                config.progress,
                work.plan.units,
                work.plan.bytes if config.uri_column is None else None,  # a manifest's size says nothing of its images
                work.totals,
            )
            tally = Tally(work.totals, printer, started)
            _tell(work, tally)
            if not work.done.all():
                graph = background.submit(load_model, spec, choice, path, config.top_k, calibration)
                printer.say(f"shardlabel: {choice.reason}")
                cluster = cluster or connect(None)
                with ray_failures(tally):
                    label_pending(config, cluster, settings, (spec, choice, graph.result()), work, tally)
            report = tally.report(
                output=dest.uri,
                model=spec.name,
                precision=choice.arithmetic,
                decode=config.decode.value,
                units=work.plan.units,
                new_units=work.new_units,
            )
            if tally.units_now or dest.stat(SUMMARY_FILE) is None:
                lease.check()
                write_summary(dest, report)
            return report
    finally:
        if cluster is not None:
            cluster.close()


def has_local_gpu() -> bool:
    """Tell whether this machine has an NVIDIA GPU that this process may use; without loading CUDA."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _wait_aloud(config: LabelConfig) -> Callable[[str], None]:
    printer = ProgressPrinter(config.progress, 0, 0, Totals())
    return lambda text: printer.say(f"shardlabel: {text}")


def _tell_evenness(dest: Storage, work: ResumeState, workers: int, tally: Tally) -> None:
    """Say for how much of their time workers have work, if units are few enough to be uneven, but more than one."""
    if work.plan.units <= SINGLE_SHARD_UNITS and work.plan.units - work.done.sum() > 1:
        all_sizes = unit_bytes(iter_units(dest, work.plan))
        sizes = [size for size, done in zip(all_sizes, work.done, strict=True) if not done]
        busy = busy_share(sizes, workers)
        tally.printer.say(
            f"shardlabel: {many_text(len(sizes), 'unit')} to label; judging by their sizes, the actors will be "
            f"busy {busy:.0%} of the time"
        )


def _tell(work: ResumeState, tally: Tally) -> None:
    """Say what --append found, and which units can no longer be labelled."""
    if work.new_units:
        before = work.plan.units - work.new_units
        tally.printer.say(f"shardlabel: added {many_text(work.new_units, 'unit')} to the plan, which had {before}")
    for unit, shard in work.lost.items():
        tally.add_failed(f"unit {unit} ({shard})", "it was never labelled, and its shard is gone")


def window_units(readers: int) -> int:
    """Return how many units Ray Data gets at a time, for so many processes that read them."""
    return min(max(WINDOW_UNITS, UNITS_PER_ACTOR * readers), MAX_WINDOW_UNITS)


def unit_settings(
    config: LabelConfig,
    source: Source,
    spec: ModelSpec,
    choice: DeviceChoice,
    labels: tuple[str, ...],
    calibration: Calibration | None = None,
) -> UnitSettings:
    """Return those settings of a run that workers need."""
    dest = open_storage(config.output)
    first = source if config.overwrite else planned_first(source, dest)
    taken = OutputSpec(labels, {}, embedding_size=1, calibration=calibration).schema().names
    columns = reader.columns_of(first, config, taken=tuple(taken))
    metadata = file_metadata(spec, choice, config.decode, calibration)
    return UnitSettings(
        source=source.base,
        dest=dest,
        format=source.format,
        preprocessing=spec.preprocessing,
        mode=config.decode,
        limits=ImageLimits(max_pixels=config.max_pixels, max_image_bytes=config.max_image_bytes),
        batch_size=batch_size(config, choice),
        output=OutputSpec(labels, metadata, carried=columns.added, calibration=calibration),
        embeddings=config.embeddings,
        image_timeout_s=config.image_timeout_s,
        columns=columns,
        fetch=reader.fetch_settings(config),
    )


def label_pending(
    config: LabelConfig,
    cluster: Cluster,
    settings: UnitSettings,
    model: tuple[ModelSpec, DeviceChoice, bytes],
    work: ResumeState,
    tally: Tally,
) -> None:
    """Label the pending units, window by window, until all are done or a stop is requested.

    A unit that fails on its own is counted, and the others continue.
    """
    import ray

    from pipeline.operators.dataset import Labelling, label_units
    from pipeline.session.attempts import RunState

    spec, choice, graph = model
    if config.embeddings:
        settings = replace(
            settings, output=replace(settings.output, embedding_size=embedding_size(spec, choice, graph))
        )
    state = RunState(uuid.uuid4().hex, job_name(os.environ))
    gauges = RunGauges(state.job, work.plan.units)
    pools = plan_pools(config, choice, cluster, pending=int((~work.done).sum()))
    tally.printer.say(f"shardlabel: {pools.describe(cluster)}")
    _tell_evenness(settings.dest, work, pools.readers, tally)
    cluster.wait_for(pools.actors[0] * pools.actor_cpus + min(1, pools.decoders), pools.actors[0] * pools.actor_gpus)
    ref = ModelRef(
        spec, choice, settings.output.labels, config.top_k, pools.batch_size, pools.gpu_share, ray.put(graph),
        pools.cuda_graphs, config.image_timeout_s, settings.output.calibration,
    )  # fmt: skip
    budget = ErrorBudget(config.max_error_rate, tally.totals.rows)
    settings = replace(settings, fetch=settings.fetch.shared_by(pools.readers))
    labelling = Labelling(settings, ref, pools, state, tally.printer.say)
    pending = (unit for unit in iter_units(settings.dest, work.plan) if not work.done[unit.number])
    with (
        _cleared(state),
        stop_on_signal(state.request_stop, tally.printer) as stopped,
        work.log,
        # Every second: a gauge that is set once is exported once.
        tally.printer.ticking(lambda: gauges.show(tally.totals)),
    ):
        while not stopped.is_set() and (window := list(islice(pending, window_units(pools.readers)))):
            for result in label_units(labelling, window, stopped.is_set):
                if result.commit is not None:
                    work.log.append(result.commit)
                    tally.add(result.commit)
                    stops = not stopped.is_set() and tally.is_over(budget)
                else:
                    name = _unit_name(window, result.unit)
                    tally.add_failed(name, result.why)
                    is_common = result.stops or tally.failed_units - len(work.lost) >= MAX_FAILED_UNITS
                    stops = tally.failure is None and is_common
                    if stops:
                        tally.failure = f"{name}: {result.why}"
                if stops:
                    tally.printer.say("shardlabel: stopping once the units in progress are finished")
                    state.request_stop()
                    stopped.set()
            work.log.flush()


def _unit_name(units: list[Unit], number: int) -> str:
    """Return a unit's name for messages, with its first shards."""
    (unit,) = (unit for unit in units if unit.number == number)
    names = [piece.shard for piece in unit.slices[:3]] + ["..."] * (len(unit.slices) > 3)
    return f"unit {number} ({', '.join(names)})"


@contextmanager
def _cleared(state: RunState) -> Iterator[None]:
    """Clear the run's state in the cluster however the run ends; wait CLEAR_S at most, as a lost cluster takes a minute."""
    try:
        yield
    finally:

        def clear() -> None:
            with suppress(Exception):
                state.clear()

        cleaner = threading.Thread(target=clear, daemon=True)
        cleaner.start()
        cleaner.join(CLEAR_S)


@contextmanager
def ray_failures(tally: Tally) -> Iterator[None]:
    """Record an error of Ray's as the reason why the run failed, in one line."""
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ConnectionError, TimeoutError) as err:
        logger.info("Ray failed", exc_info=True)
        lines = [line.strip() for line in str(err).splitlines() if line.strip()]
        tally.failure = f"Ray failed: {lines[-1] if lines else type(err).__name__}"


def embedding_size(spec: ModelSpec, choice: DeviceChoice, graph: bytes) -> int:
    """Return the number of features, by running the model on one image."""
    classifier = Classifier(spec, precision=choice.precision, graph=graph, top_k=1)
    side = spec.preprocessing.crop
    embedding = classifier.predict(np.zeros((1, side, side, 3), np.uint8), embedding=True).embedding
    assert embedding is not None
    return int(embedding.shape[1])
