"""What the scripts for a GPU share: the model's graph, images, and which provider and precision a word means."""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.catalog import load_labels, load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.graph.fp16 import load_graph, to_half
from models.graph.join import join_graph
from models.inference.classifier import Provider
from models.spec import ModelSpec, Precision
from models.store.locate import is_cached, locate

PROVIDERS = {"cpu": Provider.CPU, "cuda": Provider.CUDA, "tensorrt": Provider.TENSORRT}
# What is asked of a GPU; TF32 is float32 with products rounded to 10 bits.
ARITHMETIC = {"fp32": (Precision.FP32, False), "tf32": (Precision.FP32, True), "fp16": (Precision.FP16, False)}


@dataclass(frozen=True, slots=True)
class Graphs:
    """A model's joined graphs.

    Attributes:
        spec: Its entry.
        of: Bytes by precision.
        weights: "the model's", or "made up" where its file is not here: labels mean nothing then, and rates do.
    """

    spec: ModelSpec
    of: dict[Precision, bytes]
    weights: str


def load_graphs(name: str) -> Graphs:
    """Return the graphs of a model in float32 and float16; of resnet18-v2 with made-up weights where it is not cached."""
    spec = load_spec(name)
    if name != "resnet18-v2" or is_cached(spec, Precision.FP32):
        path = locate(spec, Precision.FP32)
        return Graphs(spec, {p: load_graph(spec, p, path) for p in (Precision.FP32, Precision.FP16)}, "the model's")
    from tests.support.made_up_resnet import build_made_up_resnet

    with tempfile.TemporaryDirectory() as folder:
        whole = join_graph(spec, build_made_up_resnet(Path(folder) / "resnet.onnx").read_bytes())
    return Graphs(spec, {Precision.FP32: whole, Precision.FP16: to_half(whole)}, "made up")


def top_k(spec: ModelSpec) -> int:
    """Return how many labels are asked for: five, or all of a model with fewer classes."""
    return min(5, len(load_labels(spec)))


def encoded_images(tars: list[str], limit: int) -> list[bytes]:
    """Return the .jpg members of tars, in order."""
    found: list[bytes] = []
    for path in tars:
        with tarfile.open(path) as tar:
            found += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
        if len(found) >= limit:
            break
    return found[:limit]


def decoded_images(tars: list[str], spec: ModelSpec, limit: int) -> np.ndarray:
    """Return crops of the images as `label` makes them; uint8 of shape (n_images, crop, crop, 3)."""
    limits = ImageLimits()
    return np.stack(
        [decode_image(data, spec.preprocessing, DecodeMode.FAST, limits).pixels for data in encoded_images(tars, limit)]
    )


def made_up_images(spec: ModelSpec, count: int) -> np.ndarray:
    """Return noise; what a session takes does not depend on what is in its images."""
    side = spec.preprocessing.crop
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
