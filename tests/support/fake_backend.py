"""A backend without a model: an image's label depends on its length in bytes, so that answers are predictable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from hashlib import sha256
from types import SimpleNamespace

import numpy as np

from models.calibration import Calibration
from models.catalog import load_spec
from models.errors import DeadlineError, InputError, NotReadyError, OverloadedError, UndecodableImageError
from models.inference.predictions import Float32Array
from models.spec import Precision
from serve.model.batcher import Item
from serve.model.engine import Engine
from serve.model.outcomes import Labelled, Outcome

MODEL = "efficientnet-lite0"


class FakeBackend(Engine):
    """The best label is `len(image) % 3`; bytes that begin with `bad` are undecodable."""

    def __init__(
        self, *, delay_s: float = 0.0, room: int = 1000, name: str = MODEL, full: Exception | None = None
    ) -> None:
        self.spec = load_spec(MODEL).model_copy(update={"name": name})
        self.full = full
        self.precision = Precision.INT8
        self.labels = ("red", "green", "blue")
        self.calibration: Calibration | None = None
        self.delay_s = delay_s
        self.room = room
        self.seen: list[bytes] = []
        self.error: Exception | None = None
        self.statistics = {}

    is_ready = True
    queued = 0
    _batcher = SimpleNamespace(close=lambda: None)

    def admit(self, images: int) -> None:
        if self.full is not None:
            raise self.full
        if not self.is_ready:
            raise NotReadyError("not ready")

    async def _submit(self, items: Sequence[Item]) -> list[Outcome]:
        images, deadline = [item.payload for item in items], min(item.deadline for item in items)
        if self.error is not None:
            raise self.error
        if len(images) > self.room:
            raise OverloadedError("overloaded: the queue is full", retry_after_s=1.2)
        if time.monotonic() + self.delay_s > deadline:
            raise DeadlineError("the deadline passed before the answer was there")
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        self.seen += images
        for item in items:
            item.digest = sha256(item.payload).hexdigest()
        wanted = items[0].options
        return [self._outcome(image, wanted.top_k, wanted.probabilities, wanted.embedding) for image in images]

    def _outcome(self, image: bytes, top_k: int, probabilities: bool, embedding: bool) -> Outcome:
        if image.startswith(b"bad"):
            return UndecodableImageError("JPEG cannot be decoded: its data are truncated", width=4, height=2)
        if isinstance(error := self.error, InputError):
            return error
        order = [(len(image) + i) % 3 for i in range(3)]
        scores = np.array([0.75, 0.125, 0.125], np.float32)
        return Labelled(
            width=20,
            height=16,
            label_ids=np.array(order[:top_k], np.int32),
            scores=scores[:top_k],
            probabilities=scores[np.argsort(order)] if probabilities else None,
            embedding=np.array([len(image), 1 / 3], np.float32) if embedding else None,
            accepted=None if self.calibration is None else order[0] != 1,
        )

    async def run_tensor(self, batch: Float32Array, *, deadline: float) -> Float32Array:
        return batch.reshape(len(batch), -1)[:, :3]
