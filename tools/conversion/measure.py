"""Measure a model file on labelled photographs with the reference preprocessing: accuracy and images/s.

It uses only Pillow and ONNX Runtime, not the project's decoder or classifier, so that it can judge both.
"""

from __future__ import annotations

import io
import statistics
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from models.errors import SourceError
from models.spec import Interpolation, Layout, ModelSpec, Preprocessing

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
RESAMPLING = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: Image.Resampling.LANCZOS,
}
BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a WebDataset shard; `label` is its class index, or None if the shard has none."""

    key: str
    image: bytes
    label: int | None


@dataclass(frozen=True, slots=True)
class Photographs:
    """Preprocessed images, with their classes.

    Attributes:
        images: float32 of shape (n_images, 3, crop, crop), as the model takes it.
        labels: int64 of shape (n_images,), class indices.
    """

    images: Float32Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Percentage of images whose class is the best label (top1), or among the best five (top5)."""

    top1: float
    top5: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.1f} %, top-5 {self.top5:.1f} %"


def read_samples(shards: Iterable[Path]) -> Iterator[Sample]:
    """Yield the images of WebDataset tars, in the tars' order.

    Raises:
        SourceError: A shard is missing or not a tar, or a class is not a number.
    """
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                members = {PurePosixPath(m.name): _content(tar, m) for m in tar if m.isfile()}
        except (OSError, tarfile.TarError) as err:
            raise SourceError(f"shard {shard} cannot be read as a tar: {err}") from err
        for path, content in members.items():
            if path.suffix in IMAGE_SUFFIXES:
                key = str(path.with_suffix(""))
                yield Sample(key, content, _label(members.get(path.with_suffix(".cls")), f"{shard}: {key}.cls"))


def _label(content: bytes | None, name: str) -> int | None:
    if content is not None and not content.strip().isdigit():
        raise SourceError(f"{name} must hold a class index, got {content[:40]!r}")
    return None if content is None else int(content)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def read_photographs(shards: Iterable[Path], spec: ModelSpec) -> Photographs:
    """Read and preprocess every labelled image; each takes 0.6 MB of memory at 224 x 224.

    Raises:
        SourceError: A shard cannot be read, or no shard has an image with a class.
    """
    shards = list(shards)
    samples = [sample for sample in read_samples(shards) if sample.label is not None]
    if not samples:
        names = ", ".join(map(str, shards))
        raise SourceError(f"expected images with their class index beside them (x.jpg, x.cls) in {names}, got none")
    images = np.stack([to_model_input(to_pixels(sample.image, spec.preprocessing), spec) for sample in samples])
    return Photographs(images, np.array([sample.label for sample in samples], np.int64))


def to_pixels(image: bytes, preprocessing: Preprocessing) -> UInt8Array:
    """Decode an encoded image, resize and crop it.

    Returns:
        uint8 of shape (crop, crop, 3), HWC RGB.
    """
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
    ratio = preprocessing.resize_shorter / min(picture.size)
    width, height = (round(ratio * side) for side in picture.size)
    resized = picture.resize((width, height), RESAMPLING[preprocessing.interpolation])
    crop = preprocessing.crop
    left, top = width // 2 - crop // 2, height // 2 - crop // 2
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def to_model_input(pixels: UInt8Array, spec: ModelSpec) -> Float32Array:
    """Turn uint8 of shape (height, width, 3) into the model's float32 of shape (3, height, width), or HWC."""
    p = spec.preprocessing
    scaled = pixels.astype(np.float32) * np.float32(p.scale)
    mean, std = (np.asarray(constants, np.float32) for constants in (p.mean, p.std))
    values: Float32Array = (scaled - mean) / std
    return values.transpose(2, 0, 1) if spec.input.layout is Layout.NCHW else values


def open_session(model: Path | bytes, *, num_threads: int = 1) -> Any:  # noqa: ANN401 (untyped library)
    """Load a model on the CPU, as an `onnxruntime.InferenceSession`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(
    session: Any,  # noqa: ANN401 (untyped library)
    images: Float32Array,
    *,
    batch_size: int = BATCH_SIZE,
) -> Float32Array:
    """Run a model with one input over all images, in batches; the last may be smaller.

    Returns:
        Its first output, float32 of shape (n_images, n_classes).
    """
    name = session.get_inputs()[0].name
    starts = range(0, len(images), batch_size)
    return np.concatenate([session.run(None, {name: images[i : i + batch_size]})[0] for i in starts])


def accuracy(scores: Float32Array, labels: Int64Array) -> Accuracy:
    """Compare scores of shape (n_images, n_classes) with the classes of shape (n_images,)."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]  # (n_images, 5)
    hits = best == labels[:, None]
    return Accuracy(top1=100 * float(hits[:, 0].mean()), top5=100 * float(hits.any(axis=1).mean()))


def images_per_second(
    session: Any,  # noqa: ANN401 (untyped library)
    images: Float32Array,
    *,
    batch_size: int = BATCH_SIZE,
    repeats: int = 5,
) -> float:
    """Return the median throughput of `repeats` runs over all images, after a warm-up batch."""
    run(session, images[:batch_size], batch_size=batch_size)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(session, images, batch_size=batch_size)
        rates.append(len(images) / (time.perf_counter() - start))
    return statistics.median(rates)


def spread_over_batch_sizes(
    session: Any,  # noqa: ANN401 (untyped library)
    images: Float32Array,
    batch_sizes: Sequence[int],
) -> float:
    """Return the largest change of any probability with the batch that an image is in; 0.0 means bit-equal.

    It covers each batch size, the shorter last batch, and batches with other images.
    """
    alone = softmax(run(session, images, batch_size=1))
    order = np.random.default_rng(0).permutation(len(images))
    spread = 0.0
    for size in batch_sizes:
        together = softmax(run(session, images, batch_size=size))
        shuffled = softmax(run(session, images[order], batch_size=size))
        spread = max(spread, float(np.abs(together - alone).max()), float(np.abs(shuffled - alone[order]).max()))
    return spread


def softmax(logits: Float32Array) -> Float32Array:
    """Turn logits of shape (n_images, n_classes) into probabilities."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Float32Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
