"""Variants of a model, measured on the same images: accuracy, how far the probabilities moved, and throughput."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.inference.classifier import Classifier
from models.spec import ModelSpec, Precision

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

BATCH_SIZE = 16
SPEED_IMAGES = 32
SPEED_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant of the model, measured on the held-out images. Rates in percent.

    Attributes:
        name: "fp32", "int8 minmax", ...
        precision: Its precision.
        top1: Top-1 on those images.
        top5: Top-5 on those images.
        agreement: Images with the same best label as fp32.
        divergence: Mean Kullback-Leibler divergence of its probabilities from those of fp32.
        images_per_s: On the CPU, one thread; None for float16, in which a CPU does not compute.
        speed_up: Throughput relative to fp32, measured alternately.
        size_bytes: Size of the file.
    """

    name: str
    precision: str
    top1: float
    top5: float
    agreement: float
    divergence: float
    images_per_s: float | None
    speed_up: float | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Images:
    """Images with their classes: uint8 of shape (n_images, crop, crop, 3), and int64 of shape (n_images,)."""

    pixels: UInt8Array
    truth: Int64Array

    def take(self, rows: Int64Array) -> Images:
        """Return the given rows."""
        return Images(self.pixels[rows], self.truth[rows])


@dataclass(frozen=True, slots=True)
class Run:
    """A candidate with its results on the held-out images; `probabilities` is float32 of shape (n_images, n_classes)."""

    candidate: Candidate
    classifier: Classifier
    probabilities: Float32Array


def measure(
    name: str,
    spec: ModelSpec,
    precision: Precision,
    graph: bytes,
    images: Images,
    *,
    size: int,
    base: Run | None = None,
) -> Run:
    """Run a joined graph over the held-out images.

    Args:
        name: Name of the candidate.
        spec: The model.
        precision: Precision of the graph.
        graph: A graph of `models.graph.join.join_graph`.
        images: The held-out images.
        size: Size of its file, bytes.
        base: fp32, to compare with; None for fp32 itself.
    """
    classifier = Classifier(spec, precision=precision, top_k=1, graph=graph)
    pieces = []
    for start in range(0, len(images.truth), BATCH_SIZE):
        found = classifier.predict(images.pixels[start : start + BATCH_SIZE], probabilities=True).probabilities
        assert found is not None
        pieces.append(found)
    probabilities = np.concatenate(pieces)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    hits = order == images.truth[:, None]
    against = probabilities if base is None else base.probabilities
    tiny = np.finfo(np.float32).tiny
    logs = np.log(np.maximum(against, tiny)) - np.log(np.maximum(probabilities, tiny))
    rate, speed_up = None, None
    if precision is not Precision.FP16:
        rate, speed_up = _speed(classifier, classifier if base is None else base.classifier, images.pixels)
    candidate = Candidate(
        name=name,
        precision=precision.value,
        top1=round(100 * float(hits[:, 0].mean()), 3),
        top5=round(100 * float(hits.any(axis=1).mean()), 3),
        agreement=round(100 * float((against.argmax(axis=1) == probabilities.argmax(axis=1)).mean()), 3),
        divergence=round(float((against * logs).sum(axis=1).mean()), 5),
        images_per_s=rate,
        speed_up=speed_up,
        size_bytes=size,
    )
    return Run(candidate, classifier, probabilities)


def _speed(classifier: Classifier, base: Classifier, pixels: UInt8Array) -> tuple[float, float]:
    """Return images/s, and their ratio to the base's; both are run alternately, so that other load affects both."""
    few = pixels[:SPEED_IMAGES]
    taken: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(SPEED_REPEATS):
        for index, one in enumerate((classifier, base)):
            started = time.perf_counter()
            for start in range(0, len(few), BATCH_SIZE):
                one.predict(few[start : start + BATCH_SIZE])
            taken[index].append(time.perf_counter() - started)
    ratios = [of_base / own for own, of_base in zip(taken[0], taken[1], strict=True)]
    speed_up = 1.0 if classifier is base else statistics.median(ratios)
    return round(len(few) / statistics.median(taken[0]), 1), round(speed_up, 2)


def line(found: Candidate, base: Candidate) -> str:
    """Return a line that compares a candidate with fp32."""
    moved = "" if found is base else f", {found.top1 - base.top1:+.2f} points, {found.agreement:.1f} % same labels"
    rate = "" if found.images_per_s is None else f"; {found.images_per_s:.0f} images/s"
    times = "" if found is base or found.speed_up is None else f", {found.speed_up:.2f} times fp32"
    return (
        f"  {found.name:<16} top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %{moved}{rate}{times}; "
        f"{found.size_bytes / 1e6:.1f} MB"
    )
