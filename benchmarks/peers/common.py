"""What every peer is given: the images, the model, and a way to say how far it is. Nothing here is a peer's own work.

The images are the same bytes in three forms (tars, loose files, Parquet of their paths), so that each peer reads the one
that its documentation starts from. The model is the same file: as `Classifier` (uint8 in, labels out) where the peer has
uint8 crops, as `FloatModel` where its idiom passes on normalised float32 tensors. One thread per process that holds a
model, unless the peer has but one.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.progress import note_labelled
from models.catalog import load_labels, load_spec
from models.inference.classifier import Classifier
from models.spec import Interpolation, Layout, ModelSpec, OutputKind, Precision, Preprocessing
from models.store.locate import locate

FILTERS = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is to do.

    Attributes:
        inputs: Folder that holds shards/*.tar, images/*.jpg and urls/*.parquet (`image_url`: a path).
        output: Folder for the Parquet files: key, label, score.
        model: Name or path, as `load_spec` takes it.
        precision: Which artifact.
        cpus: Cores to use.
        inference_bound: Whether inference takes longer than decoding, which moves the best division of the cores.
    """

    inputs: Path
    output: Path
    model: str
    precision: str
    cpus: int
    inference_bound: bool

    @property
    def tars(self) -> list[str]:
        return sorted(map(str, (self.inputs / "shards").glob("*.tar")))

    def classifier(self, num_threads: int = 1) -> Classifier:
        return Classifier(load_spec(self.model), precision=Precision(self.precision), top_k=1, num_threads=num_threads)


def parse_job(doc: str | None) -> Job:
    """Read the options, which are the same for all peers."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--inference-bound", action="store_true")
    o = parser.parse_args()
    o.output.mkdir(parents=True, exist_ok=True)
    return Job(o.inputs, o.output, o.model, o.precision, o.cpus, o.inference_bound)


@cache
def spec_of(model: str) -> ModelSpec:
    """Load an entry once per process."""
    return load_spec(model)


@cache
def float_model_of(job: Job) -> FloatModel:
    """Load a session once per process, where the peer has no class to hold it."""
    return FloatModel(job)


class FloatModel:
    """The model's own graph, of normalised float32 tensors: what the idioms that preprocess in full feed.

    Args:
        job: Names the model.
        num_threads: Of one `predict`.
    """

    def __init__(self, job: Job, num_threads: int = 1) -> None:
        self.spec = load_spec(job.model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(locate(self.spec, Precision(job.precision)))
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._labels = np.asarray(load_labels(self.spec), object)

    def predict(self, tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label float32 tensors of the model's own layout; returns names and probabilities, each (n_images,)."""
        (scores,) = self._session.run([self.spec.output.name], {self.spec.input.name: np.ascontiguousarray(tensors)})
        scores = scores.reshape(len(tensors), -1)
        if self.spec.output.kind is OutputKind.LOGITS:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        note_labelled(len(tensors))
        return self._labels[best], scores[np.arange(len(best)), best]


class UInt8Model:
    """The joined graph, of uint8 crops: the very class that bare and ours use."""

    def __init__(self, job: Job, num_threads: int = 1) -> None:
        self.spec = load_spec(job.model)
        self._classifier = job.classifier(num_threads)
        self._labels = np.asarray(load_labels(self.spec), object)

    def predict(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label uint8 crops of shape (n_images, crop, crop, 3); returns names and probabilities, each (n_images,)."""
        predictions = self._classifier.predict(crops)
        note_labelled(len(crops))
        return self._labels[predictions.label_ids[:, 0]], predictions.scores[:, 0]


def resize_and_crop(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """Do what torchvision's Resize and CenterCrop do with a Pillow image: all of it is resized, then cut."""
    ratio = p.resize_shorter / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), FILTERS[p.interpolation])
    left, top = image.width // 2 - p.crop // 2, image.height // 2 - p.crop // 2
    return np.asarray(image.crop((left, top, left + p.crop, top + p.crop)))


def crop_of(pixels: np.ndarray, p: Preprocessing) -> np.ndarray:
    """Resize only what the centre crop keeps of a decoded image; uint8 of shape (crop, crop, 3)."""
    return crop_of_image(Image.fromarray(pixels), p)


def crop_of_image(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """Do the same with an image of Pillow's."""
    side = min(image.size) * p.crop / p.resize_shorter
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((p.crop, p.crop), FILTERS[p.interpolation], box=box))


def normalised(crop: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Make a uint8 crop what ToTensor and Normalize make of it: float32, in the model's layout."""
    p = spec.preprocessing
    std = np.asarray(p.std, np.float32)
    tensor = crop.astype(np.float32) * (np.float32(p.scale) / std) - np.asarray(p.mean, np.float32) / std
    return tensor if spec.input.layout is Layout.NHWC else np.ascontiguousarray(tensor.transpose(2, 0, 1))
