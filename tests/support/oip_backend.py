"""A backend whose answers can be computed by hand, behind the protocol's routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.calibration import Calibration
from models.errors import (
    EmptyImageError,
    ImageTooLargeError,
    InputError,
    NotReadyError,
    UndecodableImageError,
    UnsupportedImageError,
)  # fmt: skip
from models.spec import Artifact, InputSpec, Interpolation, ModelSpec, OutputKind, OutputSpec, Precision, Preprocessing
from serve.config import ServeConfig
from serve.http.application import Application
from serve.http.in_flight import Extras
from serve.model.models import Models
from serve.model.outcomes import Labelled
from serve.oip.endpoint import Endpoint
from serve.oip.http import oip_routes

LABELS = ("red", "green", "blue", "no colour at all")
SIDE = 2


def fake_spec(name: str = "tiny") -> ModelSpec:
    return ModelSpec(
        name=name,
        description="A model for tests.",
        licence="none",
        input=InputSpec(name="pixels"),
        output=OutputSpec(name="scores", kind=OutputKind.LOGITS),
        preprocessing=Preprocessing(
            resize_shorter=SIDE, crop=SIDE, interpolation=Interpolation.BILINEAR, scale=1, mean=(0, 0, 0), std=(1, 1, 1)
        ),
        labels="labels.txt",
        artifacts={Precision.FP32: Artifact(file="tiny.onnx", sha256="0" * 64, size_bytes=1, bundled=True)},
        folder=Path("nowhere"),
    )


@dataclass(eq=False)
class FakeBackend:
    """Labels an image by its first byte, b"R", b"G" or b"B": that class scores 0.7, the others 0.1 each.

    The output of the tensor model is each channel's mean, and 0 for the fourth class.
    """

    spec: ModelSpec = field(default_factory=fake_spec)
    precision: Precision = Precision.FP32
    labels: tuple[str, ...] = LABELS
    calibration: Calibration | None = None
    is_ready: bool = True
    raises: Exception | None = None
    full: Exception | None = None
    calls: list[dict[str, object]] = field(default_factory=list)
    statistics: dict[str, dict[str, object]] = field(default_factory=dict)

    def admit(self, images: int) -> None:
        if self.full is not None:
            raise self.full
        if not self.is_ready:
            raise NotReadyError("not ready")

    async def label(self, images: Sequence[bytes], *, top_k: int, deadline: float, probabilities: bool = False):
        self.calls.append(
            {"images": list(images), "top_k": top_k, "deadline": deadline, "probabilities": probabilities}
        )
        await asyncio.sleep(0)
        if self.raises is not None:
            raise self.raises
        return [self._outcome(image, top_k, probabilities) for image in images]

    def _outcome(self, image: bytes, top_k: int, probabilities: bool) -> Labelled | InputError:
        assert type(image) is bytes
        if not image:
            return EmptyImageError("no bytes")
        bad = {b"U": UnsupportedImageError, b"L": ImageTooLargeError}
        if image[:1] not in b"RGB":
            return bad.get(image[:1], UndecodableImageError)("cannot be read")
        best = b"RGB".index(image[:1])
        values = np.full(len(self.labels), 0.1, np.float32)
        values[best] = 0.7
        order = np.argsort(-values, kind="stable")[:top_k].astype(np.int32)
        accepted = None if self.calibration is None else bool(self.calibration.accepts(order[:1], values[order[:1]])[0])
        return Labelled(4, 3, order, values[order], values if probabilities else None, accepted=accepted)

    async def run_tensor(self, batch: np.ndarray, *, deadline: float) -> np.ndarray:
        self.calls.append({"batch": batch, "deadline": deadline})
        assert batch.dtype == np.float32
        assert batch.flags.aligned
        assert batch.flags.c_contiguous
        if self.raises is not None:
            raise self.raises
        return np.concatenate([batch.mean((2, 3)), np.zeros((len(batch), 1), np.float32)], axis=1)


@dataclass
class Got:
    """An answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        return self.json["error"]


class Client:
    """Calls the routes in this process; a status of 500 fails the test."""

    def __init__(
        self, backend: FakeBackend | None = None, limits: ServeConfig | None = None, models=None, control=None
    ) -> None:
        self.backend = backend or FakeBackend()
        self.models = models or Models(self.backend)
        routes = oip_routes(Endpoint(self.models, limits or ServeConfig(), control))
        self.app = Application(routes, Extras())

    def __call__(self, method: str, path: str, body: bytes | None = None, root: str = "", **headers: object) -> Got:
        return asyncio.run(self._call(method, path, body or b"", root, headers))

    def infer(self, body: object, model: str = "tiny", **headers: object) -> Got:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self("POST", f"/v2/models/{model}/infer", content, **headers)

    async def _call(self, method: str, path: str, body: bytes, root: str, headers: dict[str, object]) -> Got:
        names = [(k.replace("_", "-").encode(), str(v).encode("latin-1")) for k, v in headers.items()]
        scope = {"type": "http", "method": method, "path": root + path, "root_path": root, "headers": names}
        # In two parts, as a server may deliver it.
        parts = [
            {"type": "http.request", "body": body[:7], "more_body": True},
            {"type": "http.request", "body": body[7:]},
        ]
        sent: list[dict[str, object]] = []

        async def receive():
            return parts.pop(0)

        async def send(message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start, *rest = sent
        assert start["status"] != 500
        got = {k.decode(): v.decode("latin-1") for k, v in start["headers"]}
        return Got(start["status"], got, b"".join(m["body"] for m in rest))
