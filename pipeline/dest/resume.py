"""DEST before and after a run: what it was begun with, what is finished, and what killed runs left behind."""

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
    """A plan, and how far it is done.

    Attributes:
        plan: The whole.
        done: bool of shape (units,): what there is nothing to do for.
        log: Where records of further units go.
        totals: Over the units that are finished.
        new_units: That --append put into the plan now; None without it.
        lost: Units that are not finished and cannot be: a shard of theirs is gone. By number, the shard.
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
    """Make the plan, or check that the one DEST has is of the same run, and extend it; read what is finished.

    Args:
        config: Whether to start anew, or to extend the plan.
        dest: DEST, held by this run.
        settings: What must be the same for a resume; see `pipeline.dest.fingerprint.fingerprint`.
        source: SOURCE.
        slices: Lists the source's slices anew at each call.
        count: Counts a slice's samples, up to a number; for --limit.
        check: Raises where this run holds DEST no more.

    Raises:
        ConfigError: DEST was begun with other settings, or its state is damaged.
        SourceError: SOURCE changed since or is DEST, or DEST holds Parquet files of others.
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
    """Return the plan that DEST has, or None where one is to be made: DEST is then empty of what readers see.

    Args:
        dest: DEST, held by this run.
        read: What is read, of which nothing may lie in DEST.
        check: Raises where this run holds DEST no more.
        overwrite: Whether to remove what a run wrote to DEST.

    Raises:
        ConfigError: The plan is damaged.
        SourceError: DEST holds Parquet files of others, or is what is read.
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
    """Read what is finished of a plan, and remove what killed runs left half written."""
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
    """Compare SOURCE with a plan in any order, and extend it where that is asked for.

    Returns:
        (plan, gone): With what is new; and the planned slices that are no more, with the numbers of their units.
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

    The records go first and the plan after the files that it names: cut short in between, DEST is a run of which less
    is finished, and never files of which nothing says whose they are.
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
    """Raise where DEST holds Parquet files that no plan accounts for: a reader would take them for ours.

    Raises:
        SourceError: Names the first.
    """
    names = (file.path for file in dest.list())
    foreign = next((name for name in names if name.endswith(".parquet") and not _is_of(plan, name)), None)
    if foreign is not None:
        raise SourceError(
            f"DEST {dest.describe()} already holds {foreign}, and no plan of a run that names it; it is not touched: "
            "give an empty folder"
        )


def _refuse_shared(dest: Storage, source: Source) -> None:
    """Raise where SOURCE names files of DEST by a way that no name shows, such as a bucket mounted as a disk.

    Only files that are called as a run's own are looked into: a file put into DEST tells whether it is also there.

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
            f"{source.base.describe(shared[0])}, of which this run reads files, is DEST {dest.describe()}: a run must "
            "not replace what it reads; give another --output"
        )


def _remove_temporaries(dest: Storage) -> None:
    """Remove what killed runs left half written. Nobody else writes: DEST is held."""
    if dest.is_local:
        for file in dest.list(TEMPORARY_FOLDER):
            if file.path.endswith(".tmp"):
                dest.delete(file.path)
