"""DEST before a relabelling: it must not overlap what is read, and its plan has OLD's units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from models.errors import ConfigError, SourceError
from pipeline.dest.fingerprint import check_settings
from pipeline.dest.finished import FinishedDest
from pipeline.dest.plan import PLAN_FILE, Plan, iter_units, write_plan
from pipeline.dest.resume import ResumeState, begin, load_state
from pipeline.sources.overlap import Overlap
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage

# Name of a setting in a plan: the digest of OLD's rows.
ROWS_SETTING = "relabelled rows"


def refuse_overlap(old: FinishedDest, source: Source, dest: Storage) -> None:
    """Raise, before anything is written, if DEST and OLD are the same or one contains the other, or DEST contains SOURCE.

    Raises:
        SourceError: The message says which.
    """
    try:
        Overlap(old.dest, dest).refuse(PLAN_FILE)
        # A reader of OLD and everything below it would read both.
        Overlap(dest, old.dest).refuse(PLAN_FILE)
    except SourceError as err:
        raise SourceError(
            f"OLD {old.dest.describe()} and DEST {dest.describe()} are the same folder, or one contains the other; OLD must "
            "not change: give another --output"
        ) from err
    for _ in islice(_units(old, source, dest), 1):
        pass


def prepare(
    old: FinishedDest,
    dest: Storage,
    source: Source,
    settings: dict[str, Any],
    check: Callable[[], None],
    *,
    overwrite: bool,
) -> ResumeState:
    """Use OLD's units for DEST's plan, or check that DEST's plan is of the same run; read what is finished.

    Args:
        old: OLD.
        dest: DEST, held by this run.
        source: OLD's SOURCE.
        settings: Settings that must be the same for a resume.
        check: Raises if this run no longer holds DEST.
        overwrite: Whether to start DEST from nothing.

    Raises:
        ConfigError: DEST was begun with other settings, or its state is damaged.
        SourceError: DEST contains Parquet files from elsewhere, or files that are read.
    """

    def files() -> Iterator[Slice]:
        units = iter_units(old.dest, old.plan)
        return (piece for unit in units for piece in unit.slices)

    plan_file = Source(old.dest, source.format, lambda: iter([Slice(PLAN_FILE, 0, "")]))
    plan = begin(dest, (plan_file, replace(source, files=files)), check, overwrite=overwrite)
    if plan is None:
        check()
        plan = write_plan(dest, _units(old, source, dest), settings)
    else:
        _check_old(old, dest, plan, settings)
        check_settings(plan, settings, dest)
    return load_state(dest, plan, check)


def _check_old(old: FinishedDest, dest: Storage, plan: Plan, settings: dict[str, Any]) -> None:
    rows = plan.settings.get(ROWS_SETTING)
    if rows == settings[ROWS_SETTING]:
        return
    what = "belongs to a run of `label`" if rows is None else f"was begun when {old.dest.describe()} had other rows"
    raise ConfigError(f"{dest.describe()} {what}; give another --output, or --overwrite")


def _units(old: FinishedDest, source: Source, dest: Storage) -> Iterator[Unit]:
    """Yield OLD's units; raise if DEST contains one of their shards."""
    overlap = Overlap(source.base, dest)
    for unit in iter_units(old.dest, old.plan):
        for piece in unit.slices:
            overlap.refuse(piece.shard)
        yield unit
