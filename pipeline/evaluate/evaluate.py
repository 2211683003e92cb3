"""Measure a model's accuracy on labelled images, beside the reported figures; or compare two variants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np

from models.decode.decode import DecodeMode
from models.errors import ConfigError, SourceError
from models.labels import ClassFinder
from models.spec import Precision
from pipeline.config import LabelConfig, SourceFormat
from pipeline.evaluate.counts import Score
from pipeline.evaluate.fit import fit_calibration
from pipeline.evaluate.labelled import LabelledSource
from pipeline.evaluate.results import Accepted, ChangedImage, ClassAccuracy, Comparison, Confusion, Evaluation
from pipeline.evaluate.scoring import Scored, Variant, open_variant, score
from pipeline.evaluate.statistics import interval, mcnemar, percent
from pipeline.evaluate.temperature import Collector
from pipeline.storage.uris import without_secrets


def evaluate_source(
    config: LabelConfig, say: Callable[[str], None], *, label_field: str | None = None, precision: float | None = None
) -> Evaluation:
    """Label every image of SOURCE in this process, on all its cores, and compare with the labels there.

    Args:
        config: What to read, and which variant to measure.
        say: Called with the line that says what auto chose.
        label_field: Key of .json members, or column of Parquet, that has the class.
        precision: Fit a calibration with thresholds for this precision, percent.

    Raises:
        SourceError: SOURCE cannot be read, or has no labels, or too few to fit a calibration to.
        ModelError: The model cannot be loaded or used.
        ConfigError: The calibration is for another model.
    """
    variant = open_variant(config)
    say(f"shardlabel: {variant.choice.reason}")
    collector = None if precision is None else Collector()
    labelled, scored = _run(config, label_field, (variant,), say, collector)
    found = _evaluation(variant, scored.scores[0], labelled, scored, seconds=scored.seconds)
    if collector is None or precision is None:
        return found
    return replace(found, fit=fit_calibration(variant, collector, precision))


def compare(
    config: LabelConfig, a: str, b: str, say: Callable[[str], None], *, label_field: str | None = None
) -> Comparison:
    """Measure two variants on the same images.

    Args:
        config: What both have in common.
        a: The first variant: a precision, a decode mode, a model, or several of these joined by ":".
        b: The second variant.
        say: Called with a line for each variant.
        label_field: See `evaluate_source`.

    Raises:
        ConfigError: The two have different classes.
        SourceError: SOURCE cannot be read, or has no labels.
        ModelError: A model cannot be loaded or used.
    """
    variants = []
    for text in (a, b):
        variants.append(open_variant(_parse_variant(text, config)))
        say(f"shardlabel: {variants[-1].choice.reason}, {variants[-1].mode.value} decode")
    first, second = variants
    if [(c.wnid, c.name) for c in first.classes] != [(c.wnid, c.name) for c in second.classes]:
        raise ConfigError(
            f"--compare: {first.spec.name} and {second.spec.name} have different classes "
            f"({len(first.classes)} and {len(second.classes)}), so their labels cannot be compared"
        )
    labelled, scored = _run(config, label_field, (first, second), say)
    found = [
        _evaluation(variant, one, labelled, scored, seconds=one.busy_s / scored.threads)
        for variant, one in zip(variants, scored.scores, strict=True)
    ]
    paired, names = scored.paired, first.classes
    return Comparison(
        a=found[0],
        b=found[1],
        agreement=percent(paired.agree, found[0].images),
        only_a=paired.only_a,
        only_b=paired.only_b,
        mcnemar_p=mcnemar(paired.only_a, paired.only_b),
        changed=[
            ChangedImage(key, names[truth].name, *(names[i].name if i >= 0 else "not decoded" for i in (one, other)))
            for key, truth, one, other in paired.changed
        ],
    )


def _parse_variant(text: str, config: LabelConfig) -> LabelConfig:
    """Parse a variant of --compare; the other options give what it does not name."""
    given: dict[str, object] = {}
    for part in re.split(r":(?![/\\])", text):
        if part == "auto" or part in list(Precision):
            given["precision"] = part
        elif part in list(DecodeMode):
            given["decode"] = DecodeMode(part)
        elif part:
            given["model"] = part
        else:
            raise ConfigError(
                f"--compare takes a precision, a decode mode, a model, or these joined by ':', got {text!r}"
            )
    return config.model_copy(update=given)


def _run(
    config: LabelConfig,
    label_field: str | None,
    variants: tuple[Variant, ...],
    say: Callable[[str], None],
    collector: Collector | None = None,
) -> tuple[LabelledSource, Scored]:
    labelled = LabelledSource(config, ClassFinder(variants[0].classes), label_field)
    scored = score(variants, islice(labelled, config.limit), say, collector)
    if scored.scores[0].images == 0:
        kinds = {
            SourceFormat.WEBDATASET: "no .cls members, and no .json members with a class",
            SourceFormat.PARQUET: "no row with a class",
            SourceFormat.IMAGES: "no images",
        }
        named = without_secrets(" ".join(config.source))
        raise SourceError(f"SOURCE {named} has {kinds[labelled.source.format]} to compare with")
    return labelled, scored


def _evaluation(
    variant: Variant, found: Score, labelled: LabelledSource, scored: Scored, *, seconds: float
) -> Evaluation:
    reported = variant.spec.reported_for(variant.choice.precision)
    first = reported[0] if reported else None
    return Evaluation(
        model=variant.spec.name,
        precision=variant.choice.precision.value,
        decode=variant.mode.value,
        images=found.images,
        not_decoded=found.not_decoded,
        without_label=labelled.without_label,
        top1=percent(found.top1, found.images),
        top1_interval=interval(found.top1, found.images),
        top5=percent(found.top5, found.images),
        top5_interval=interval(found.top5, found.images),
        reported_top1=first.top1 if first else None,
        reported_top5=first.top5 if first else None,
        reported=reported,
        reported_note=variant.spec.reported_note,
        accepted=_accepted(variant, found),
        calibration_error=round(100 * found.calibration.error, 3),
        mean_score=round(100 * found.calibration.mean_score, 3),
        calibration=found.calibration.bins(),
        per_class=_per_class(variant, found),
        confusions=_confusions(variant, found),
        incomplete=labelled.incomplete,
        seconds=round(scored.seconds, 3),
        images_per_s=round(found.images / seconds, 1),
    )


def _accepted(variant: Variant, found: Score) -> Accepted | None:
    if variant.calibration is None:
        return None
    count, right = found.accepted, found.accepted_right
    return Accepted(
        target=variant.calibration.precision_target,
        coverage=percent(count, found.images),
        precision=percent(right, count) if count else None,
        precision_interval=interval(right, count),
    )


def _per_class(variant: Variant, found: Score) -> list[ClassAccuracy]:
    present: Iterable[int] = np.flatnonzero(found.per_class[:, 0]).tolist()
    rows = []
    for index in present:
        images, first, five = (int(value) for value in found.per_class[index])
        one = variant.classes[index]
        rows.append(ClassAccuracy(index, one.wnid, one.name, images, percent(first, images), percent(five, images)))
    return rows


def _confusions(variant: Variant, found: Score, most: int = 50) -> list[Confusion]:
    """Return the most confused pairs, the most frequent first; of equal counts the lower class first."""
    ordered = sorted(found.confused.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [
        Confusion(true, variant.classes[true].name, label, variant.classes[label].name, count)
        for (true, label), count in ordered
    ]
