"""A session that labels batches of any size; a `Classifier` on a CPU uses it."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.device import Provider
from models.errors import InferenceError, SignatureError
from models.inference.predictions import Predictions, UInt8Array
from models.session import build_session
from models.spec import ModelSpec


class SessionRunner:
    """Runs a joined graph; see `models.inference.classifier.Classifier` for results and errors.

    Args:
        spec: The model's entry.
        graph: The joined graph's bytes.
        provider: Execution provider.
        top_k: Labels per image.
        num_threads: Threads of one run on a CPU.
    """

    def __init__(self, spec: ModelSpec, graph: bytes, provider: Provider, top_k: int, num_threads: int = 1) -> None:
        self.spec = spec
        self.top_k = top_k
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
        """Label a batch; see `Classifier.predict`."""
        self._check_images(images)
        if len(images) == 0:
            # Not every model accepts an empty batch.
            black = np.zeros((1, *images.shape[1:]), np.uint8)
            return self.predict(black, probabilities=probabilities, embedding=embedding, top_k=top_k).rows(0, 0)
        if embedding and self.spec.embedding is None:
            raise SignatureError(f"{self.spec.name} has no embeddings: its entry names no embedding tensor")
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
        # A model with a fixed batch runs piece by piece; the last piece is padded, and the padding's results dropped.
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
