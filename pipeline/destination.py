"""DEST before and after a run: what it was begun with, what is finished, and what killed runs left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.class_names import LabelText
from models.classifier import Choice
from models.errors import SourceError
from models.spec import ModelSpec
from pipeline.commits import CommitLog, Totals
from pipeline.config import LabelConfig, SourceFormat
from pipeline.plan import (
    PLAN_FILE,
    STATE_FOLDER,
    Plan,
    Slice,
    check_settings,
    check_source,
    cut_units,
    limited,
    read_plan,
    write_plan,
)
from pipeline.sources import Source
from pipeline.storage import TEMPORARY_FOLDER, Storage


@dataclass(frozen=True, slots=True)
class Work:
    """A plan, and how far it is done.

    Attributes:
        plan: The whole.
        done: bool of shape (units,).
        log: Where records of further units go.
        totals: Over the units that are done.
    """

    plan: Plan
    done: npt.NDArray[np.bool_]
    log: CommitLog
    totals: Totals


def prepare(
    config: LabelConfig,
    dest: Storage,
    settings: dict[str, Any],
    source: Source,
    slices: Callable[[], Iterator[Slice]],
    count: Callable[[Slice, int], int],
) -> Work:
    """Make the plan, or check that the one DEST has is of the same run; read what is finished.

    Args:
        config: Whether to start anew.
        dest: DEST, held by this run.
        settings: What must be the same for a resume; see `fingerprint`.
        source: SOURCE.
        slices: Lists the source's slices anew at each call.
        count: Counts a slice's samples, up to a number; for --limit.

    Raises:
        ConfigError: DEST was begun with other settings, or its state is damaged.
        SourceError: SOURCE changed since, or DEST holds Parquet files of others.
    """
    if config.overwrite:
        clear(dest)
    plan = read_plan(dest)
    if plan is None:
        _refuse_foreign(dest)
        wanted = slices() if config.limit is None else limited(slices(), config.limit, count)
        plan = write_plan(dest, cut_units(wanted, images=source.format is SourceFormat.IMAGES), settings)
    else:
        check_settings(plan, settings, dest)
        check_source(dest, plan, slices(), limited=config.limit is not None)
    _remove_temporaries(dest)
    log = CommitLog(dest, plan.units)
    done, totals = log.load()
    return Work(plan, done, log, totals)


def fingerprint(config: LabelConfig, source: Source, spec: ModelSpec, choice: Choice) -> dict[str, Any]:
    """Return what must be the same for two runs to write the same rows."""
    return {
        "source": source.base.uri,
        "format": source.format.value,
        "model": spec.name,
        "artifact": spec.artifact(choice.precision).sha256,
        "precision": choice.arithmetic,
        "decode": config.decode.value,
        "preprocessing": spec.preprocessing_id,
        "top-k": config.top_k,
        # Absent where it is the usual one: plans of before it existed can be resumed.
        "labels": None if config.labels is LabelText.NAME else config.labels.value,
        "embeddings": config.embeddings,
        "image-column": config.image_column,
        "key-column": config.key_column,
        "carry": list(config.carry),
        "limit": config.limit,
        "max-pixels": config.max_pixels,
        "max-image-bytes": config.max_image_bytes,
    }


def clear(dest: Storage) -> None:
    """Remove what a run wrote to DEST, the plan first: without it the rest means nothing."""
    if dest.stat(PLAN_FILE) is not None:
        dest.delete(PLAN_FILE)
    for file in dest.list(STATE_FOLDER, recursive=True):
        if not file.path.endswith(("/lock", "/lease.json")):
            dest.delete(file.path)
    for file in dest.list():
        if file.path.startswith("part-") and file.path.endswith(".parquet"):
            dest.delete(file.path)


def _refuse_foreign(dest: Storage) -> None:
    """Raise where DEST holds Parquet files that no plan accounts for: a reader would take them for ours."""
    foreign = [file.path for file in dest.list() if file.path.endswith(".parquet")]
    if foreign:
        raise SourceError(
            f"DEST {dest.describe()} already holds {foreign[0]}, and no plan of a run; "
            "give an empty folder, or --overwrite where the part files may go"
        )


def _remove_temporaries(dest: Storage) -> None:
    """Remove what killed runs left half written. Nobody else writes: DEST is held."""
    if dest.is_local:
        for file in dest.list(TEMPORARY_FOLDER):
            dest.delete(file.path)
