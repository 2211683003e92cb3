"""Run one or more variants over the same labelled images, on all cores, and count what was right."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from models.calibration import Calibration
from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.errors import InputError
from models.graph.fp16 import load_graph
from models.inference.classifier import Classifier, DeviceChoice, Provider, choose
from models.inference.predictions import Predictions
from models.labels import ClassName, check_classes, load_classes
from models.spec import ModelSpec
from models.store.download import progress_printer
from models.store.locate import locate
from pipeline.config import LabelConfig
from pipeline.evaluate.counts import Batch, BoolArray, Pair, Paired, Score
from pipeline.evaluate.temperature import Collector, Observed, observe
from pipeline.job import has_local_gpu
from pipeline.operators.model_ref import settle_calibration
from pipeline.quantities import count_text
from pipeline.storage.listing import ahead

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

BATCH_SIZE = {Provider.CPU: 16, Provider.CUDA: 128}
TOP_K = 5
SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of labelling: a loaded model in a precision, with a decode mode."""

    spec: ModelSpec
    choice: DeviceChoice
    mode: DecodeMode
    classes: tuple[ClassName, ...]
    classifier: Classifier
    calibration: Calibration | None = None


def open_variant(config: LabelConfig) -> Variant:
    """Load a model; download it if necessary.

    Raises:
        ConfigError: The calibration is for another model.
        ModelError: The model cannot be downloaded or used.
        SignatureError: It has another number of classes than its labels file.
    """
    spec = load_spec(config.model)
    classes = load_classes(spec)
    choice = choose(spec, config.device, config.precision, has_gpu=has_local_gpu())
    calibrated = settle_calibration(config.calibration, spec, choice, config.decode)
    with progress_printer(spec.name) as progress:
        path = locate(spec, choice.precision, progress=progress)
    graph = load_graph(spec, choice.precision, path, 1.0 if calibrated is None else calibrated.temperature)
    classifier = Classifier(
        spec, precision=choice.precision, provider=choice.provider, top_k=min(TOP_K, len(classes)), graph=graph
    )
    check_classes(spec, classifier.num_classes)
    return Variant(spec, choice, config.decode, classes, classifier, calibrated)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of all variants, how two of them compare, and how long it took."""

    scores: tuple[Score, ...]
    paired: Paired
    seconds: float
    threads: int


def score(
    variants: tuple[Variant, ...],
    pairs: Iterable[Pair],
    say: Callable[[str], None],
    collector: Collector | None = None,
) -> Scored:
    """Label all images with each variant. Streams: a bounded number of batches is in memory.

    Variants with the same preprocessing and decode mode share the decoding; its time counts for each.

    Args:
        variants: One variant or more; with two, they are also compared with each other.
        pairs: Samples with their class.
        say: Called every few seconds with the progress.
        collector: Takes the input of a calibration's fit.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    result = Scored(tuple(Score(np.zeros((len(one.classes), 3), np.int64)) for one in variants), Paired(), 0.0, cores)
    size = max(BATCH_SIZE.get(variant.choice.provider, 16) for variant in variants)
    started = said = time.perf_counter()

    def label(samples: list[Pair]) -> tuple[list[Pair], list[Batch]]:
        return samples, _label(variants, samples, observed=collector is not None)

    iterator = iter(pairs)
    pieces = iter(lambda: list(islice(iterator, size)), [])
    for samples, batches in ahead(pieces, label, calls=cores + 1):
        for one, batch in zip(result.scores, batches, strict=True):
            one.add(batch)
            if collector is not None and batch.observed is not None:
                collector.add(batch.observed)
        if len(batches) == 2:
            result.paired.add(samples, *batches)
        if time.perf_counter() - said >= SAY_EVERY_S:
            said = time.perf_counter()
            so_far = ", ".join(f"{100 * one.top1 / one.images:.2f} %" for one in result.scores)
            say(f"shardlabel: {count_text(result.scores[0].images)} images so far, top-1 {so_far}")
    return Scored(result.scores, result.paired, time.perf_counter() - started, cores)


def _label(variants: tuple[Variant, ...], samples: list[Pair], *, observed: bool) -> list[Batch]:
    """Label one batch with each variant; with `observed`, also keep the input of a calibration's fit."""
    truth = np.array([index for _, index in samples], np.int64)
    decoded: dict[tuple[str, DecodeMode], tuple[UInt8Array, BoolArray, float]] = {}
    batches = []
    for variant in variants:
        started = time.perf_counter()
        key = (variant.spec.preprocessing_id, variant.mode)
        if key not in decoded:
            pixels, ok = _decode(variant, samples)
            decoded[key] = (pixels, ok, time.perf_counter() - started)
            started = time.perf_counter()
        pixels, ok, decode_s = decoded[key]
        found = variant.classifier.predict(pixels, probabilities=observed)
        k = found.label_ids.shape[1]
        ids, scores = np.full((len(samples), k), -1, np.int64), np.zeros(len(samples), np.float32)
        ids[ok], scores[ok] = found.label_ids, found.scores[:, 0]
        kept = _observed(samples, ok, found) if observed else None
        accepted = np.zeros(len(samples), np.bool_)
        if variant.calibration is not None:
            accepted[ok] = variant.calibration.accepts(found.label_ids[:, 0], found.scores[:, 0])
        batches.append(Batch(truth, ids, scores, ok, decode_s + time.perf_counter() - started, accepted, kept))
    return batches


def _observed(samples: list[Pair], ok: BoolArray, found: Predictions) -> Observed:
    assert found.probabilities is not None, "they were requested"
    decoded = [pair for pair, is_ok in zip(samples, ok.tolist(), strict=True) if is_ok]
    truth = np.array([index for _, index in decoded], np.int32)
    return observe([sample for sample, _ in decoded], truth, found.label_ids[:, 0], found.probabilities)


def _decode(variant: Variant, samples: list[Pair]) -> tuple[UInt8Array, BoolArray]:
    """Decode a batch; return the pixels of the images that can be decoded, and which these are."""
    side = variant.spec.preprocessing.crop
    pixels = np.empty((len(samples), side, side, 3), np.uint8)
    ok = np.zeros(len(samples), np.bool_)
    limits, count = ImageLimits(), 0
    for row, (sample, _) in enumerate(samples):
        try:
            decode_image(sample.data or b"", variant.spec.preprocessing, variant.mode, limits, out=pixels[count])
        except InputError:
            continue
        ok[row] = True
        count += 1
    return pixels[:count], ok
