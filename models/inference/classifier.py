"""The one inference class of the project: bulk actors and online replicas both hold a `Classifier`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.device import Device, DeviceChoice, Provider, choose
from models.errors import InferenceError, SignatureError
from models.graph.fp16 import load_graph
from models.session import build_session
from models.spec import ModelSpec, Precision
from models.store.locate import locate

__all__ = ["Classifier", "Device", "DeviceChoice", "Labeller", "Predictions", "Provider", "choose"]

logger = logging.getLogger(__name__)

UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Labels of a batch, in input order.

    Attributes:
        label_ids: int32 of shape (n_images, k), best first; equal scores keep the lower class index first.
        scores: float32 of shape (n_images, k), probabilities after softmax.
        probabilities: float32 of shape (n_images, n_classes), or None where it was not asked for.
        embedding: float32 of shape (n_images, features), or None where it was not asked for.
    """

    label_ids: Int32Array
    scores: Float32Array
    probabilities: Float32Array | None = None
    embedding: Float32Array | None = None

    def rows(self, first: int, last: int) -> Predictions:
        """Return some of the images' labels, as views."""
        optional = (None if values is None else values[first:last] for values in (self.probabilities, self.embedding))
        return Predictions(self.label_ids[first:last], self.scores[first:last], *optional)

    @staticmethod
    def join(pieces: Sequence[Predictions]) -> Predictions:
        """Put the labels of several batches behind one another; all have the same optional parts."""
        if len(pieces) == 1:
            return pieces[0]
        probabilities = [piece.probabilities for piece in pieces if piece.probabilities is not None]
        embeddings = [piece.embedding for piece in pieces if piece.embedding is not None]
        return Predictions(
            np.concatenate([piece.label_ids for piece in pieces]),
            np.concatenate([piece.scores for piece in pieces]),
            np.concatenate(probabilities) if probabilities else None,
            np.concatenate(embeddings) if embeddings else None,
        )


class Labeller(Protocol):
    """What labels batches: a `Classifier`, or what stands in its place in tests and benchmarks."""

    def predict(self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False) -> Predictions:
        """Label a batch; see `Classifier.predict`."""


class Classifier:
    """Label batches of images with one ONNX Runtime session.

    Construction loads the joined graph (see `models.graph.join`) and runs a first batch; that takes up to seconds. Build
    one per process, in the actor or the replica, never in the driver: a session cannot be pickled, a spec can.
    `predict` may be called from several threads.

    Args:
        spec: What to load; see `models.catalog.load_spec`.
        precision: Which artifact of it.
        provider: Execution provider to use. Never another: if ONNX Runtime cannot use it, construction fails.
        top_k: How many labels `predict` gives, 1 <= top_k <= number of classes.
        num_threads: Threads of one `predict` on a CPU; 1 where each core has an actor of its own.
        graph: The joined graph's bytes, where the caller has them already; else it is found by the spec.

    Raises:
        ArtifactError: The model's file is missing or its SHA-256 differs.
        DownloadError: The model has to be downloaded, and no source had it.
        ProviderUnavailableError: The provider cannot be used here; the message lists those that can.
        SignatureError: The file's tensors are not what the entry says, or top_k is more than its classes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        precision: Precision,
        provider: Provider = Provider.CPU,
        top_k: int = 5,
        num_threads: int = 1,
        graph: bytes | None = None,
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.top_k = top_k
        if graph is None:
            graph = load_graph(spec, precision, locate(spec, precision))
        self._session = self._build_session(graph, provider, num_threads)
        self._side = spec.preprocessing.crop
        self.num_classes = self._warm_up()
        if not 1 <= top_k <= self.num_classes:
            raise SignatureError(
                f"top_k must be between 1 and {self.num_classes} (the classes of {spec.name}), got {top_k}"
            )
        self._k = np.asarray([top_k], np.int64)

    def predict(
        self, images: UInt8Array, *, probabilities: bool = False, embedding: bool = False, top_k: int | None = None
    ) -> Predictions:
        """Label a batch.

        Args:
            images: uint8 of shape (n_images, crop, crop, 3), HWC RGB; n_images may be 0.
            top_k: Labels per image of this batch, 1 <= top_k <= num_classes; the classifier's own where not given.
            probabilities: Whether to return every class's probability.
            embedding: Whether to return the penultimate features; the entry must name them.

        Returns:
            Predictions with n_images rows, in input order.

        Raises:
            SignatureError: images has another shape or dtype, or the model has no embedding.
            InferenceError: ONNX Runtime failed; its exception is the cause.
        """
        self._check_images(images)
        if len(images) == 0:
            # Not every model takes an empty batch.
            black = np.zeros((1, *images.shape[1:]), np.uint8)
            return self.predict(black, probabilities=probabilities, embedding=embedding, top_k=top_k).rows(0, 0)
        if embedding and self.spec.embedding is None:
            raise SignatureError(f"{self.spec.name} names no embedding tensor in its entry")
        names = ["top_ids", "top_scores"]
        names += ["probabilities"] * probabilities + ["embedding"] * embedding
        k = self._k if top_k is None else np.asarray([top_k], np.int64)
        values = dict(zip(names, self._run(names, {"images": images, "k": k}), strict=True))
        return Predictions(
            label_ids=values["top_ids"].astype(np.int32),
            scores=values["top_scores"],
            probabilities=values.get("probabilities"),
            embedding=values.get("embedding"),
        )

    def _check_images(self, images: UInt8Array) -> None:
        expected = (self._side, self._side, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise SignatureError(
                f"images must be uint8 of shape (n_images, {self._side}, {self._side}, 3), "
                f"got {images.dtype} of shape {images.shape}"
            )

    def _build_session(self, graph: bytes, provider: Provider, num_threads: int) -> Any:  # noqa: ANN401 (untyped library)
        return build_session(graph, provider, num_threads)

    def _warm_up(self) -> int:
        """Run one image and return the number of classes."""
        image = np.zeros((1, self._side, self._side, 3), np.uint8)
        (probabilities,) = self._run(["probabilities"], {"images": image, "k": np.ones(1, np.int64)})
        return int(probabilities.shape[1])

    def _run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        size = self.spec.input.batch
        if size is None:
            return self._run_once(names, feed)
        # A model of a fixed batch runs piece by piece, the last one filled up with what is thrown away.
        images, pieces = feed["images"], []
        for start in range(0, max(1, len(images)), size):
            piece = np.zeros((size, *images.shape[1:]), np.uint8)
            count = len(images[start : start + size])
            piece[:count] = images[start : start + size]
            pieces.append([value[:count] for value in self._run_once(names, {**feed, "images": piece})])
        return [np.concatenate(values) for values in zip(*pieces, strict=True)]

    def _run_once(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        try:
            return list(self._session.run(names, feed))
        except Exception as err:  # ONNX Runtime's errors share no base but Exception
            raise InferenceError(f"{self.spec.name} failed on {len(feed['images'])} images: {err}") from err
