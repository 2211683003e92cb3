"""Run one or two ways of labelling over the same labelled images, on all cores, and count what was right."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.errors import InputError
from models.inference.classifier import Classifier, Device, DeviceChoice, Provider, choose
from models.labels import ClassName, check_classes, load_classes
from models.spec import ModelSpec
from models.store.download import progress_printer
from models.store.locate import locate
from pipeline.evaluate.statistics import Calibration
from pipeline.quantities import count_text
from pipeline.sources.sample import Sample

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

BATCH_SIZE = {Provider.CPU: 16, Provider.CUDA: 128}
TOP_K = 5
MAX_CHANGED = 50
SAY_EVERY_S = 10.0

Pair = tuple[Sample, int]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of labelling: a model in a precision, with a decode mode; loaded."""

    spec: ModelSpec
    choice: DeviceChoice
    mode: DecodeMode
    classes: tuple[ClassName, ...]
    classifier: Classifier

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.spec.name} {self.choice.precision.value}, {self.mode.value} decode"


def open_way(model: str, precision: str, device: Device, mode: DecodeMode, *, has_gpu: bool) -> Variant:
    """Load a model; fetches it where it is not here.

    Raises:
        ModelError: It cannot be had or used.
        SignatureError: It has another number of classes than its labels file.
    """
    spec = load_spec(model)
    classes = load_classes(spec)
    choice = choose(spec, device, precision, has_gpu=has_gpu)
    with progress_printer(spec.name) as progress:
        locate(spec, choice.precision, progress=progress)
    classifier = Classifier(spec, precision=choice.precision, provider=choice.provider, top_k=min(TOP_K, len(classes)))
    check_classes(spec, classifier.num_classes)
    return Variant(spec, choice, mode, classes, classifier)


@dataclass(slots=True)
class Score:
    """What one way got right. Memory: a few numbers per class, and one for each pair of classes that was confused.

    Attributes:
        images: With a label.
        not_decoded: Of these; they count as wrong.
        per_class: int64 of shape (n_classes, 3): images, right at first, right among five.
        confused: Images by (true class, best label), where these differ.
        calibration: Scores against what was right.
        busy_s: Seconds of work, summed over threads.
    """

    per_class: Int64Array
    images: int = 0
    not_decoded: int = 0
    confused: Counter[tuple[int, int]] = field(default_factory=Counter)
    calibration: Calibration = field(default_factory=Calibration)
    busy_s: float = 0.0

    @property
    def top1(self) -> int:
        """Images whose best label is right."""
        return int(self.per_class[:, 1].sum())

    @property
    def top5(self) -> int:
        """Images whose true class is among the best five."""
        return int(self.per_class[:, 2].sum())

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.images += len(batch.truth)
        self.not_decoded += int((~batch.decoded).sum())
        self.busy_s += batch.busy_s
        first = batch.ids[:, 0]
        right = batch.right
        among = (batch.ids == batch.truth[:, None]).any(axis=1)
        np.add.at(self.per_class, batch.truth, np.stack([np.ones_like(first), right, among], axis=1).astype(np.int64))
        wrong = batch.decoded & ~right
        self.confused.update(zip(batch.truth[wrong].tolist(), first[wrong].tolist(), strict=True))
        self.calibration.add(batch.scores[batch.decoded], right[batch.decoded])


@dataclass(frozen=True, slots=True)
class Batch:
    """What one way made of a batch; rows of images that could not be decoded hold -1 and 0.

    Attributes:
        truth: int64 of shape (n_images,).
        ids: int64 of shape (n_images, k).
        scores: float32 of shape (n_images,), of the best label.
        decoded: bool of shape (n_images,).
        busy_s: Seconds of decoding and inference.
    """

    truth: Int64Array
    ids: Int64Array
    scores: npt.NDArray[np.float32]
    decoded: BoolArray
    busy_s: float

    @property
    def right(self) -> BoolArray:
        """Whether the best label of each image is the true class."""
        return np.asarray(self.ids[:, 0] == self.truth)


@dataclass(slots=True)
class Paired:
    """How two ways compare on the same images.

    Attributes:
        agree: Images to which both give the same best label.
        only_a: Images that only the first is right about.
        only_b: Likewise the second.
        changed: The first few images with different labels: key, true class, and what each says.
    """

    agree: int = 0
    only_a: int = 0
    only_b: int = 0
    changed: list[tuple[str, int, int, int]] = field(default_factory=list)

    def add(self, samples: list[Pair], a: Batch, b: Batch) -> None:
        """Count a batch."""
        same = a.ids[:, 0] == b.ids[:, 0]
        self.agree += int(same.sum())
        self.only_a += int((a.right & ~b.right).sum())
        self.only_b += int((b.right & ~a.right).sum())
        for row in np.flatnonzero(~same)[: MAX_CHANGED - len(self.changed)]:
            sample, truth = samples[row]
            self.changed.append((sample.key, truth, int(a.ids[row, 0]), int(b.ids[row, 0])))


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of all ways, how the first two compare, and how long it took."""

    scores: tuple[Score, ...]
    paired: Paired
    seconds: float
    threads: int


def score(ways: tuple[Variant, ...], pairs: Iterable[Pair], say: Callable[[str], None]) -> Scored:
    """Label all images in each way. Streams: a bounded number of batches is in memory.

    Variants with one preprocessing and decode mode share the decoding, whose time counts for each.

    Args:
        ways: Up to two; of more, only the first two are compared with each other.
        pairs: Samples with their class.
        say: Called every few seconds with how far it is.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    result = Scored(tuple(Score(np.zeros((len(way.classes), 3), np.int64)) for way in ways), Paired(), 0.0, cores)
    size = max(BATCH_SIZE.get(way.choice.provider, 16) for way in ways)
    started = said = time.perf_counter()
    for samples, batches in _in_order(ways, iter(pairs), size, cores):
        for one, batch in zip(result.scores, batches, strict=True):
            one.add(batch)
        if len(batches) == 2:
            result.paired.add(samples, *batches)
        if time.perf_counter() - said >= SAY_EVERY_S:
            said = time.perf_counter()
            so_far = ", ".join(f"{100 * one.top1 / one.images:.2f} %" for one in result.scores)
            say(f"shardlabel: {count_text(result.scores[0].images)} images so far, top-1 {so_far}")
    return Scored(result.scores, result.paired, time.perf_counter() - started, cores)


def _in_order(
    ways: tuple[Variant, ...], pairs: Iterator[Pair], size: int, cores: int
) -> Iterator[tuple[list[Pair], list[Batch]]]:
    """Yield each batch with its results, in the order of the images; up to 2 batches a core wait or run."""
    waiting: deque[tuple[list[Pair], Future[list[Batch]]]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        try:
            while samples := list(islice(pairs, size)):
                waiting.append((samples, pool.submit(_label, ways, samples)))
                if len(waiting) > 2 * cores:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _label(ways: tuple[Variant, ...], samples: list[Pair]) -> list[Batch]:
    """Label one batch in each way."""
    truth = np.array([index for _, index in samples], np.int64)
    decoded: dict[tuple[str, DecodeMode], tuple[UInt8Array, BoolArray, float]] = {}
    batches = []
    for way in ways:
        started = time.perf_counter()
        key = (way.spec.preprocessing_id, way.mode)
        if key not in decoded:
            pixels, ok = _decode(way, samples)
            decoded[key] = (pixels, ok, time.perf_counter() - started)
            started = time.perf_counter()
        pixels, ok, decode_s = decoded[key]
        found = way.classifier.predict(pixels)
        k = found.label_ids.shape[1]
        ids, scores = np.full((len(samples), k), -1, np.int64), np.zeros(len(samples), np.float32)
        ids[ok], scores[ok] = found.label_ids, found.scores[:, 0]
        batches.append(Batch(truth, ids, scores, ok, decode_s + time.perf_counter() - started))
    return batches


def _decode(way: Variant, samples: list[Pair]) -> tuple[UInt8Array, BoolArray]:
    """Decode a batch; returns the pixels of those that can be, and which these are."""
    side = way.spec.preprocessing.crop
    pixels = np.empty((len(samples), side, side, 3), np.uint8)
    ok = np.zeros(len(samples), np.bool_)
    limits, count = ImageLimits(), 0
    for row, (sample, _) in enumerate(samples):
        try:
            decode_image(sample.data or b"", way.spec.preprocessing, way.mode, limits, out=pixels[count])
        except InputError:
            continue
        ok[row] = True
        count += 1
    return pixels[:count], ok
