"""What every server of the comparison calls, in two kinds: the project's own decoding and inference, or plain ones.

With the first only the serving differs. The second is what a server's user writes without this project, at its best: Pillow
with its scaled decoding and one resize of the crop, NumPy, and the model's file as it is, in one session.
"""

from __future__ import annotations

import io
import os

import numpy as np

from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.inference.classifier import Classifier
from models.inference.predictions import UInt8Array
from models.spec import Layout, Precision
from models.store.locate import locate

MODEL = "efficientnet-lite0"
TOP_K = 5
# Which kind a server's process has: "ours" or "plain".
KIND_VARIABLE = "SERVE_RIVALS_LABELLER"
KINDS = ("ours", "plain")


class OurLabeller:
    """One session of the bundled int8 model, on one thread, as one process per core has it."""

    def __init__(self) -> None:
        self._spec = load_spec(MODEL)
        self._classifier = Classifier(self._spec, precision=Precision.INT8, top_k=TOP_K, num_threads=1)
        self._limits = ImageLimits()

    def decode(self, data: bytes) -> UInt8Array:
        """Return the model's crop of an encoded image, uint8 of shape (224, 224, 3)."""
        return decode_image(data, self._spec.preprocessing, DecodeMode.FAST, self._limits).pixels

    def label(self, crops: list[UInt8Array]) -> list[dict]:
        """Return the five best labels of each crop."""
        found = self._classifier.predict(np.stack(crops))
        return _answers(found.label_ids, found.scores)


class PlainLabeller:
    """The same model and answers, without the project's code on the way of an image."""

    def __init__(self) -> None:
        import onnxruntime

        spec = load_spec(MODEL)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(locate(spec, Precision.INT8)), options, providers=["CPUExecutionProvider"]
        )
        self._how, self._channels_first = spec.preprocessing, spec.input.layout is Layout.NCHW
        self._mean, self._std = np.float32(self._how.mean), np.float32(self._how.std)

    def decode(self, data: bytes) -> UInt8Array:
        """Return the model's crop of an encoded image, uint8 of shape (224, 224, 3)."""
        from PIL import Image

        with Image.open(io.BytesIO(data)) as opened:
            short = self._how.resize_shorter
            opened.draft("RGB", (short, short))
            image = opened.convert("RGB")
        side = min(image.size) * self._how.crop / short
        left, top = (image.width - side) / 2, (image.height - side) / 2
        size = (self._how.crop, self._how.crop)
        box = (left, top, left + side, top + side)
        # The model's own filter is bicubic, which is slower.
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))

    def label(self, crops: list[UInt8Array]) -> list[dict]:
        """Return the five best labels of each crop."""
        batch = (np.stack(crops).astype(np.float32) * np.float32(self._how.scale) - self._mean) / self._std
        if self._channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        logits = self._session.run(None, {self._session.get_inputs()[0].name: batch})[0]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        ids = np.argsort(-scores, axis=1)[:, :TOP_K]
        return _answers(ids, np.take_along_axis(scores, ids, axis=1))


def _answers(ids: np.ndarray, scores: np.ndarray) -> list[dict]:
    return [{"label_ids": i, "scores": s} for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]


def make_labeller(kind: str | None = None) -> OurLabeller | PlainLabeller:
    """Return a labeller of a kind, or of the one that the environment names."""
    return {"ours": OurLabeller, "plain": PlainLabeller}[kind or os.environ.get(KIND_VARIABLE, "ours")]()
