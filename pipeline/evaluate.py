"""Measure a model's accuracy on labelled images, beside what was reported for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from models.cache import locate
from models.catalog import load_labels, load_spec
from models.classifier import Classifier, Device, choose
from models.decode import DecodeMode, ImageLimits, decode_image
from models.errors import InputError, SourceError
from models.spec import ReportedAccuracy
from pipeline.config import SourceFormat
from pipeline.run import has_local_gpu
from pipeline.sources import open_source
from pipeline.webdataset import Sample, ShardNotes, read_webdataset

BATCH_SIZE = 16
TOP_K = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy of a model on a source. Rates in percent.

    Attributes:
        images: With a label, decodable or not; one that could not be decoded counts as wrong.
        not_decoded: Of these.
        without_label: Samples left out, since SOURCE gives no class for them.
        top1: Share of images whose best label is the true one.
        top5: Share of images whose true label is among the best five.
        reported_top1: What the catalog's first source reports on ImageNet's validation images.
        reported_top5: Likewise.
        reported: Every reported pair, with its source.
    """

    model: str
    precision: str
    decode: str
    images: int
    not_decoded: int
    without_label: int
    top1: float
    top5: float
    reported_top1: float | None
    reported_top5: float | None
    reported: tuple[ReportedAccuracy, ...]
    seconds: float
    images_per_s: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "reported": [pair.model_dump() for pair in self.reported]}

    def sentences(self) -> str:
        """Return what a person wants to read."""
        lines = [
            f"{self.model} {self.precision}, {self.decode} decode, {self.images} images: "
            f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %  ({self.images_per_s:.0f} images/s)"
        ]
        for pair in self.reported:
            top5 = "" if pair.top5 is None else f", top-5 {pair.top5:.2f} %"
            lines.append(f"reported: top-1 {pair.top1:.2f} %{top5} ({pair.source})")
        if self.not_decoded:
            lines.append(f"{self.not_decoded} images could not be decoded and count as wrong")
        if self.without_label:
            lines.append(f"{self.without_label} samples have no .cls and were left out")
        return "\n".join(lines)


def evaluate_source(
    specs: tuple[str, ...],
    model: str,
    *,
    precision: str,
    device: Device,
    mode: DecodeMode,
    say: Callable[[str], None],
) -> Evaluation:
    """Label every sample of SOURCE in this process, on all its cores, and compare with the labels there.

    Args:
        specs: WebDataset tars, as for `label`.
        model: Name or path.
        precision: "auto" or a precision.
        device: auto, cpu or cuda.
        mode: Decode mode.
        say: Called with the line that tells what auto chose.

    Raises:
        SourceError: SOURCE cannot be read, or holds no labels.
        ModelError: The model cannot be had or used.
    """
    spec = load_spec(model)
    source = open_source(specs, SourceFormat.AUTO)
    if source.format is not SourceFormat.WEBDATASET:
        raise SourceError(f"evaluate reads WebDataset tars with .cls members, got {source.format.value}")
    choice = choose(spec, device, precision, has_gpu=has_local_gpu())
    say(f"shardlabel: {choice.reason}")
    locate(spec, choice.precision)
    num_classes = len(load_labels(spec))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    top_k = min(TOP_K, num_classes)
    classifier = Classifier(spec, precision=choice.precision, provider=choice.provider, top_k=top_k)
    limits = ImageLimits()
    side = spec.preprocessing.crop

    def label_batch(batch: list[tuple[Sample, int]]) -> tuple[int, int, int]:
        """Return how many are right at first, right among five, and not decodable."""
        pixels = np.empty((len(batch), side, side, 3), np.uint8)
        truth: list[int] = []
        for sample, class_index in batch:
            try:
                decode_image(sample.data or b"", spec.preprocessing, mode, limits, out=pixels[len(truth)])
            except InputError:
                continue
            truth.append(class_index)
        right = classifier.predict(pixels[: len(truth)]).label_ids == np.asarray(truth, np.int32)[:, None]
        return int(right[:, 0].sum()), int(right.any(axis=1).sum()), len(batch) - len(truth)

    started = time.perf_counter()
    counts = np.zeros(3, np.int64)
    left_out = _Counter()
    labelled = _labelled(_samples(source.base, source.files(), limits), num_classes, left_out)
    images = 0
    with ThreadPoolExecutor(cores) as pool:
        # A bounded number in flight: the source may be larger than memory.
        while window := [batch for _ in range(4 * cores) if (batch := list(islice(labelled, BATCH_SIZE)))]:
            counts += np.sum(list(pool.map(label_batch, window)), axis=0)
            images += sum(map(len, window))
    if images == 0:
        raise SourceError(f"SOURCE {' '.join(specs)} has no .cls members to compare with")
    seconds = time.perf_counter() - started
    reported = spec.reported[0] if spec.reported else None
    return Evaluation(
        model=spec.name,
        precision=choice.precision.value,
        decode=mode.value,
        images=images,
        not_decoded=int(counts[2]),
        without_label=left_out.count,
        top1=round(100 * int(counts[0]) / images, 3),
        top5=round(100 * int(counts[1]) / images, 3),
        reported_top1=reported.top1 if reported else None,
        reported_top5=reported.top5 if reported else None,
        reported=spec.reported,
        seconds=round(seconds, 3),
        images_per_s=round(images / seconds, 1),
    )


@dataclass(slots=True)
class _Counter:
    count: int = 0


def _samples(base: Any, files: Any, limits: ImageLimits) -> Iterator[Sample]:  # noqa: ANN401
    for file in files:
        with base.open_stream(file.shard) as stream:
            yield from read_webdataset(stream, file.shard, ShardNotes(), limits, beside=True)


def _labelled(samples: Iterator[Sample], num_classes: int, left_out: _Counter) -> Iterator[tuple[Sample, int]]:
    """Yield samples with their class; SourceError where a .cls is no class of this model."""
    for sample in samples:
        content = sample.beside.get("cls")
        if content is None:
            left_out.count += 1
            continue
        try:
            class_index = int(content)
        except ValueError as err:
            raise SourceError(
                f"{sample.shard}: {sample.key}.cls must hold a class index, got {content[:40]!r}"
            ) from err
        if not 0 <= class_index < num_classes:
            raise SourceError(
                f"{sample.shard}: {sample.key}.cls must be between 0 and {num_classes - 1}, got {class_index}"
            )
        yield sample, class_index
