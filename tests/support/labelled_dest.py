"""A finished DEST like that of `label`, made without Ray: the same plan, settings, rows and records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.inference.classifier import Classifier, choose
from pipeline.config import LabelConfig
from pipeline.dest.fingerprint import fingerprint, rows_id
from pipeline.dest.plan import iter_units
from pipeline.dest.resume import prepare
from pipeline.job import unit_settings
from pipeline.operators.model_ref import settle_model
from pipeline.operators.stages import count_samples, label_here, label_unit
from pipeline.session.stage_clock import StageClock
from pipeline.sources import reader
from pipeline.sources.source import in_part, open_source
from pipeline.storage.storage import open_storage


def label_without_ray(
    source: Path | str, output: Path, model: Path | str, *, finish: int | None = None, **options
) -> None:
    """Label with the top 3, in this process; `finish` limits the number of units."""
    config = LabelConfig(source=str(source), output=str(output), model=str(model), **{"top_k": 3, **options})
    config, spec, labels = settle_model(config)
    dest = open_storage(config.output)
    found = open_source(config.source, config.format, exclude=dest)
    choice = choose(spec, config.device, config.precision, has_gpu=False)
    same = fingerprint(config, found, spec, choice, labels)
    settings = replace(unit_settings(config, found, spec, choice, labels), rows_id=rows_id(same))
    part = in_part(found, *config.part_of())
    work = prepare(config, dest, same, found, lambda: reader.slices(part), lambda *a: count_samples(settings, *a))
    classifier = Classifier(spec, precision=choice.precision, top_k=config.top_k)
    label = label_here(classifier, StageClock(), embeddings=False)
    with work.log as log:
        for unit in list(iter_units(dest, work.plan))[:finish]:
            log.append(label_unit(settings, unit, label))
