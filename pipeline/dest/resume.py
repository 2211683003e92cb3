"""The state of DEST when a run begins: its plan, what is finished, and what killed runs left behind."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import SourceError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.commits import COMMITS_FOLDER, CommitLog, Totals
from pipeline.dest.fingerprint import check_settings, check_source, refuse_new
from pipeline.dest.growth import PlannedSlices
from pipeline.dest.plan import (
    PLAN_FILE,
    PLAN_FOLDER,
    STATE_FOLDER,
    SUMMARY_FILE,
    Plan,
    cut_units,
    extend_plan,
    limited,
    read_plan,
    write_plan,
)
from pipeline.sources.pieces import Cut, cutter
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice, part_number
from pipeline.storage.storage import TEMPORARY_FOLDER, Storage


@dataclass(frozen=True, slots=True)
class ResumeState:
    """A plan and its progress.

    Attributes:
        plan: The plan.
        done: bool of shape (units,): units with nothing left to do.
        log: Takes the records of further units.
        totals: Sums over the finished units.
        new_units: Number of units that --append has just added to the plan; None without it.
        lost: Unfinished units that can no longer be labelled: the shard that is gone, by unit.
    """

    plan: Plan
    done: npt.NDArray[np.bool_]
    log: CommitLog
    totals: Totals
    new_units: int | None = None
    lost: dict[int, str] = field(default_factory=dict)


def prepare(
    config: LabelConfig,
    dest: Storage,
    settings: dict[str, Any],
    source: Source,
    slices: Callable[[], Iterator[Slice]],
    count: Callable[[Slice, int], int],
    check: Callable[[], None] = lambda: None,
) -> ResumeState:
    """Make the plan, or check that DEST's is of the same run and extend it; read which units are finished.

    Args:
        config: Whether to start over, or to extend the plan.
        dest: DEST, held by this run.
        settings: What must be the same for a resume; see `pipeline.dest.fingerprint.fingerprint`.
        source: SOURCE.
        slices: Lists the source's slices again at each call.
        count: Counts a slice's samples, up to a number; for --limit.
        check: Raises if this run no longer holds DEST.

    Raises:
        ConfigError: DEST was begun with other settings, or its state is damaged.
        SourceError: SOURCE has changed since or overlaps DEST, or DEST holds foreign Parquet files.
    """
    plan = before = begin(dest, (source,), check, overwrite=config.overwrite)
    gone: Iterator[tuple[int, Slice]] = iter(())
    images = source.format is SourceFormat.IMAGES
    cut = cutter(config, source)
    if plan is None:
        check()
        wanted = cut(slices()) if config.limit is None else limited(slices(), config.limit, count)
        plan = write_plan(dest, cut_units(wanted, images=images), settings)
    else:
        check_settings(plan, settings, dest)
        if config.append or config.missing_ok or plan.earlier:
            check()
            plan, gone = _compare(config, dest, plan, slices(), cut, images=images)
        else:
            check_source(dest, plan, slices(), limited=config.limit is not None)
    work = load_state(dest, plan, check)
    lost = {unit: piece.shard for unit, piece in gone if not work.done[unit]}
    work.done[list(lost)] = True
    new_units = plan.units - (before.units if before else 0) if config.append else None
    return replace(work, new_units=new_units, lost=lost)


def begin(dest: Storage, read: Iterable[Source], check: Callable[[], None], *, overwrite: bool) -> Plan | None:
    """Return DEST's plan, or None if one has to be made: DEST then holds nothing that readers see.

    Args:
        dest: DEST, held by this run.
        read: The sources to read, of which nothing may be in DEST.
        check: Raises if this run no longer holds DEST.
        overwrite: Whether to remove what a run wrote to DEST.

    Raises:
        ConfigError: The plan is damaged.
        SourceError: DEST holds foreign Parquet files, or files to read.
    """
    plan = read_plan(dest)
    if plan is None or overwrite:
        _refuse_foreign(dest, plan)
    if plan is None or not overwrite:
        return plan
    for source in read:
        _refuse_shared(dest, source)
    check()
    clear(dest, plan)
    return None


def load_state(dest: Storage, plan: Plan, check: Callable[[], None]) -> ResumeState:
    """Read which units of a plan are finished, and remove partial files of killed runs."""
    _remove_temporaries(dest)
    log = CommitLog.of(dest, plan, check)
    done, totals = log.load()
    return ResumeState(plan, done, log, totals)


def _compare(
    config: LabelConfig,
    dest: Storage,
    plan: Plan,
    slices: Iterator[Slice],
    cut: Cut,
    *,
    images: bool,
) -> tuple[Plan, Iterator[tuple[int, Slice]]]:
    """Compare SOURCE with a plan in any order, and extend the plan with --append.

    Returns:
        (plan, gone): The plan with what is new, and the planned slices that are gone, with their units' numbers.
    """
    planned = PlannedSlices(dest, plan)
    new = planned.new(slices, missing_ok=config.missing_ok)
    if config.append:
        plan = extend_plan(dest, plan, cut_units(cut(new), images=images, first=plan.units))
    else:
        for extra in new:
            if config.limit is None:
                refuse_new(extra)
    return plan, planned.gone()


def clear(dest: Storage, plan: Plan) -> None:
    """Remove what the run of a plan wrote to DEST, and nothing else.

    The records are removed first, and the plan after the files that it names: an interruption leaves a run with fewer
    finished units, but never files that no plan names.
    """
    state = [file.path for file in dest.list(STATE_FOLDER, recursive=True)]
    parts = [file.path for file in dest.list() if _is_of(plan, file.path)]
    records = [path for path in state if path.startswith(f"{COMMITS_FOLDER}/")]
    segments = [path for path in state if path.startswith(f"{PLAN_FOLDER}/") and path != PLAN_FILE]
    for path in [*records, *parts, SUMMARY_FILE, PLAN_FILE, *segments]:
        dest.delete(path)


def _is_of(plan: Plan | None, name: str) -> bool:
    """Tell whether a plan names a file of DEST."""
    unit = part_number(name)
    return plan is not None and unit is not None and unit < plan.units


def _refuse_foreign(dest: Storage, plan: Plan | None) -> None:
    """Raise if DEST holds Parquet files that no plan accounts for: a reader would take them for ours.

    Raises:
        SourceError: Names the first.
    """
    names = (file.path for file in dest.list())
    foreign = next((name for name in names if name.endswith(".parquet") and not _is_of(plan, name)), None)
    if foreign is not None:
        raise SourceError(
            f"DEST {dest.describe()} already holds {foreign}, which no plan of a run names; it is not touched: "
            "give an empty folder"
        )


def _refuse_shared(dest: Storage, source: Source) -> None:
    """Raise if SOURCE names files of DEST in a way that no name shows, such as a bucket mounted as a disk.

    Only folders of files that are named like a run's own are checked: does a probe file written to DEST show up there?

    Raises:
        SourceError: Names the folder.
    """
    folders = set()
    for file in source.files():
        folder, _, name = f"/{file.shard}".rpartition("/")
        above, found, _ = f"{folder}/".partition(f"/{STATE_FOLDER}/")
        if found or part_number(name) is not None:
            folders.add((above if found else folder).strip("/"))
    if not folders:
        return
    probe = f"{STATE_FOLDER}/seen-in-source-{uuid.uuid4().hex}"
    dest.write_bytes(probe, b"Is this seen in SOURCE?")
    try:
        shared = [folder for folder in folders if source.base.stat(f"{folder}/{probe}".lstrip("/")) is not None]
    finally:
        dest.delete(probe)
    if shared:
        raise SourceError(
            f"{source.base.describe(shared[0])}, from which this run reads, is DEST {dest.describe()}: a run must not "
            "replace what it reads; give another --output"
        )


def _remove_temporaries(dest: Storage) -> None:
    """Remove partial files of killed runs. No other run writes: DEST is held."""
    if dest.is_local:
        for file in dest.list(TEMPORARY_FOLDER):
            if file.path.endswith(".tmp"):
                dest.delete(file.path)
