"""What every server of the comparison calls: the project's own decoding and inference, so that only the serving differs."""

from __future__ import annotations

import numpy as np

from models.catalog import load_spec
from models.classifier import Classifier, UInt8Array
from models.decode import DecodeMode, ImageLimits, decode_image
from models.spec import Precision

MODEL = "efficientnet-lite0"
TOP_K = 5


class Labeller:
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
        return [
            {"label_ids": ids, "scores": scores}
            for ids, scores in zip(found.label_ids.tolist(), found.scores.tolist(), strict=True)
        ]
