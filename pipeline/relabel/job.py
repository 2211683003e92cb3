"""Label some rows of a finished DEST again into another DEST, and copy the others. Exactly once, and safe to repeat."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import Calibration
from models.errors import ConfigError, SourceError, UnknownModelError
from models.inference.classifier import DeviceChoice
from models.spec import ModelSpec
from pipeline.caller import caller_as_before, stop_on_signal
from pipeline.config import LabelConfig
from pipeline.dest.commits import Totals
from pipeline.dest.fingerprint import choose_as_begun, fingerprint, rows_id
from pipeline.dest.finished import FinishedDest, open_finished
from pipeline.dest.lease import Lease
from pipeline.dest.merge import Relabelling
from pipeline.dest.plan import SUMMARY_FILE, iter_units
from pipeline.dest.resume import ResumeState, load_state
from pipeline.job import embedding_size, has_local_gpu, label_pending, ray_failures, unit_settings
from pipeline.operators.model_ref import load_model, model_file, settle_calibration, settle_model
from pipeline.operators.stages import UnitSettings
from pipeline.progress import ProgressPrinter
from pipeline.quantities import count_text, many_text
from pipeline.relabel.begin import ROWS_SETTING, prepare, refuse_overlap
from pipeline.relabel.copy_units import copy_units, matching_rows
from pipeline.relabel.like_old import (
    MODELS_KEY,
    check_columns,
    check_like,
    config_like,
    model_names,
    source_of,
)
from pipeline.relabel.report import RelabelReport
from pipeline.relabel.where import Where, parse_where
from pipeline.session.connect import Cluster, connect
from pipeline.session.shared_disk import check_disks
from pipeline.sources.source import Source
from pipeline.storage.storage import Storage, open_storage
from pipeline.summary import Tally, write_summary


@dataclass(frozen=True, slots=True)
class _Asked:
    old: FinishedDest
    where: Where | None
    config: LabelConfig
    source: Source
    dest: Storage
    calibration: Calibration | None = None


@caller_as_before()
def relabel(
    location: str, options: Mapping[str, object], where: str | None = None, *, started: float | None = None
) -> RelabelReport:
    """Label rows of a finished DEST again, from its own SOURCE, into another DEST; copy the others.

    Args:
        location: OLD: a folder or URI.
        options: Settings by field of `LabelConfig`; those missing or None are as in OLD. `output` is required.
        where: Which rows; see `pipeline.relabel.where`. None for all.
        started: `time.perf_counter()` when the command began, for the report.

    Raises:
        ConfigError: Settings are invalid, do not go with OLD's rows, or differ from those that DEST was begun with.
        SourceError: OLD is not a finished DEST, overlaps DEST, or changed during the run.
        ModelError: The model cannot be loaded or used.
        StorageError: OLD cannot be read.
    """
    started = time.perf_counter() if started is None else started
    old = open_finished(location)
    condition = None if where is None else parse_where(where, old.schema)
    config = config_like(old, options)
    config, spec, labels = _settle_model(old, config, options)
    asked = _Asked(old, condition, config, source_of(old, config), open_storage(config.output))
    refuse_overlap(old, asked.source, asked.dest)
    address = config.address or os.environ.get("RAY_ADDRESS")
    cluster = connect(address) if address else None
    try:
        for read in (asked.source.base, old.dest):
            check_disks(cluster, read, asked.dest, is_shared=config.shared_filesystem)
        has_gpu = cluster.gpus > 0 if cluster else has_local_gpu()
        config, choice = choose_as_begun(config, spec, asked.dest, has_gpu=has_gpu)
        asked = replace(
            asked, config=config, calibration=settle_calibration(config.calibration, spec, choice, config.decode)
        )
        same = fingerprint(config, asked.source, spec, choice, labels, asked.calibration)
        check_like(old, same, is_same_model=options.get("model") is None)
        settings = _unit_settings(asked, same, spec, choice, labels)
        with Lease(asked.dest) as lease:
            settings = replace(settings, token=lease.token, rows_id=rows_id(same))
            work = prepare(old, asked.dest, asked.source, same, lease.check, overwrite=config.overwrite)
            counts, left_bytes = _matching_rows(asked, settings, work)
            total_bytes = work.totals.bytes_read + left_bytes
            tally = Tally(
                work.totals, ProgressPrinter(config.progress, work.plan.units, total_bytes, work.totals), started
            )
            stopped = _copy_others(asked, settings, work, counts, tally)
            _check_unchanged(old, location)
            if not work.done.all() and not stopped:
                cluster = cluster or connect(None)
                fresh = replace(work, log=load_state(asked.dest, work.plan, lease.check).log)
                _label_rest(asked, cluster, settings, (spec, choice), fresh, tally)
                _check_unchanged(old, location)
            report = _report(asked, work, tally, counts, choice, spec)
            if tally.units_now or asked.dest.stat(SUMMARY_FILE) is None:
                lease.check()
                write_summary(asked.dest, report)
            return report
    finally:
        if cluster is not None:
            cluster.close()


def _settle_model(
    old: FinishedDest, config: LabelConfig, options: Mapping[str, object]
) -> tuple[LabelConfig, ModelSpec, tuple[str, ...]]:
    try:
        return settle_model(config)
    except UnknownModelError as err:
        if options.get("model") is not None:
            raise
        raise ConfigError(
            f"{old.dest.describe()} was labelled with {config.model}, which the catalog does not have; give --model"
        ) from err


def _unit_settings(
    asked: _Asked, same: dict[str, Any], spec: ModelSpec, choice: DeviceChoice, labels: tuple[str, ...]
) -> UnitSettings:
    """Return the settings for workers; add to `same` what must not change for a resume."""
    old, where = asked.old, asked.where
    settings = unit_settings(asked.config, asked.source, spec, choice, labels, asked.calibration)
    name, own, models = model_names(old, same)
    size = old.schema.field("embedding").type.list_size if asked.config.embeddings else None
    if size is not None:
        _check_embeddings(asked, size, spec, choice)
    metadata = {**settings.output.metadata, MODELS_KEY: json.dumps(models, sort_keys=True)}
    output = replace(settings.output, embedding_size=size, metadata=metadata)
    check_columns(old, output.schema())
    same["relabelled plan"], same[ROWS_SETTING] = old.plan.id, old.digest
    same["where"] = "(all rows)" if where is None else where.text
    relabelling = Relabelling(old.dest, None if where is None else where.expression, name, own)
    return replace(settings, output=output, relabelling=relabelling)


def _matching_rows(asked: _Asked, settings: UnitSettings, work: ResumeState) -> tuple[npt.NDArray[np.int64], int]:
    """Count the rows to label again in each unfinished unit, and print how many there are.

    Returns:
        (counts, bytes): int64 of shape (units,), and the size in SOURCE of the units with such rows.
    """
    old, left = asked.old, ~work.done
    assert settings.relabelling is not None
    counts = matching_rows(old, settings.relabelling, left)
    if left.any():
        here = "" if left.all() else " that are not finished"
        ProgressPrinter(asked.config.progress, 0, 0, Totals()).say(
            f"shardlabel: relabelling {count_text(counts.sum())} rows of {count_text(old.rows[left].sum())} in "
            f"{count_text((counts > 0).sum())} of {many_text(left.sum(), 'unit')}{here}"
        )
    units = iter_units(old.dest, old.plan) if counts.any() else ()
    return counts, sum(unit.own_bytes for unit in units if counts[unit.number])


def _copy_others(
    asked: _Asked, settings: UnitSettings, work: ResumeState, counts: npt.NDArray[np.int64], tally: Tally
) -> bool:
    """Copy the units without a row to label; return whether the run was stopped."""
    with stop_on_signal(lambda: None, tally.printer) as stopped, work.log, tally.printer.ticking(lambda: None):
        for commit in copy_units(settings, asked.old, ~work.done & (counts == 0), stopped.is_set):
            work.log.append(commit)
            work.done[commit.unit] = True
            tally.add(commit)
        return stopped.is_set()


def _label_rest(
    asked: _Asked,
    cluster: Cluster,
    settings: UnitSettings,
    model: tuple[ModelSpec, DeviceChoice],
    work: ResumeState,
    tally: Tally,
) -> None:
    spec, choice = model
    path = model_file(spec, choice)
    tally.printer.say(f"shardlabel: {choice.reason}")
    graph = load_model(spec, choice, path, asked.config.top_k, asked.calibration)
    with ray_failures(tally):
        label_pending(asked.config, cluster, settings, (spec, choice, graph), work, tally)


def _check_embeddings(asked: _Asked, width: int, spec: ModelSpec, choice: DeviceChoice) -> None:
    """Raise for a model whose embeddings do not have the width of OLD's."""
    graph = load_model(spec, choice, model_file(spec, choice), asked.config.top_k, asked.calibration)
    if width != (now := embedding_size(spec, choice, graph)):
        raise ConfigError(
            f"the embeddings of {asked.old.dest.describe()} have {width} features, but those of {spec.name} have {now}; use "
            "`label` into another DEST"
        )


def _check_unchanged(old: FinishedDest, location: str) -> None:
    """Raise where OLD has changed since this run read its records."""
    try:
        is_same = open_finished(location).digest == old.digest
    except (SourceError, ConfigError):
        is_same = False
    if not is_same:
        raise SourceError(
            f"{old.dest.describe()} was labelled again while it was read, so DEST mixes old and new rows; once it is "
            "finished, repeat this run with --overwrite"
        )


def _report(
    asked: _Asked,
    work: ResumeState,
    tally: Tally,
    counts: npt.NDArray[np.int64],
    choice: DeviceChoice,
    spec: ModelSpec,
) -> RelabelReport:
    report = tally.report(
        output=asked.dest.uri,
        model=spec.name,
        precision=choice.arithmetic,
        decode=asked.config.decode.value,
        units=work.plan.units,
    )
    finished = load_state(asked.dest, work.plan, lambda: None).done
    labelled = counts[finished & (counts > 0)]
    relabelled = int(labelled.sum())
    values = {**asdict(report), "images_per_s": round(relabelled / report.seconds, 1)}
    return RelabelReport(
        **values,
        old=asked.old.dest.uri,
        where=None if asked.where is None else asked.where.text,
        relabelled_now=relabelled,
        relabelled_units_now=len(labelled),
        copied_now=report.images_now - relabelled,
        source_bytes=work.plan.bytes,
    )
