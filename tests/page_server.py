"""An endpoint for the tests of the page: the real page, model and decoder, and answers that can be made to fail.

A real `shardlabel serve` takes ten seconds to start, and cannot be told to be busy, starting or gone at a moment's notice.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn

from models.catalog import load_labels, load_spec
from models.classifier import Classifier
from models.decode import DecodeMode, ImageLimits, decode_image
from models.errors import EmptyImageError, ImageTooLargeError, InputError, UnsupportedImageError
from models.spec import Precision
from serve.page import Page, PageState

STATUS = {EmptyImageError: 400, ImageTooLargeError: 413, UnsupportedImageError: 415}


@dataclass
class PageServer:
    """What the endpoint does, to be changed while it runs.

    Attributes:
        url: Where it is.
        state: What it says of itself.
        key: The bearer key that it wants, or "".
        busy: How many of the next requests to classify are answered with 503.
        asked: Content types of the requests to classify, in order.
    """

    url: str = ""
    state: PageState = field(default_factory=lambda: PageState(True, "efficientnet-lite0", "int8", 1_000_000))
    key: str = ""
    busy: int = 0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = load_spec("efficientnet-lite0")
        self._labels = load_labels(spec)
        self._classifier = Classifier(spec, precision=Precision.INT8)
        self._page = Page(lambda: self.state)

    def reset(self) -> None:
        """Be ready, open and free again."""
        self.state, self.key, self.busy = replace(self.state, ready=True), "", 0
        self.asked.clear()

    def classify(self, content: bytes) -> tuple[dict[str, Any], str]:
        """Label one image; return the answer of `/v1/classify` and its Server-Timing."""
        spec = self._classifier.spec
        started = time.perf_counter()
        image = decode_image(content, spec.preprocessing, DecodeMode.FAST, ImageLimits())
        decoded = time.perf_counter()
        found = self._classifier.predict(image.pixels[None])
        timing = f"decode;dur={1000 * (decoded - started):.2f}, infer;dur={1000 * (time.perf_counter() - decoded):.2f}"
        labels = [
            {"label": self._labels[number], "label_id": int(number), "score": float(score)}
            for number, score in zip(found.label_ids[0], found.scores[0], strict=True)
        ]
        result = {"status": "ok", "width": image.width, "height": image.height, "labels": labels}
        return {"model": spec.name, "model_version": "1", "results": [result]}, timing

    async def __call__(self, scope, receive, send) -> None:
        """Answer one request (ASGI), below "/" and below "/app"."""
        if scope["type"] != "http":
            return
        if scope["path"].split("/")[1] == "app":
            scope = {**scope, "root_path": "/app"}
        path = scope["path"].removeprefix(scope["root_path"]) or "/"
        if path == "/" or path.startswith("/page/"):
            await self._page(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        timing = ""
        status, answer = await self._answer(path, dict(scope["headers"]), body)
        if status == 200:
            answer, timing = answer
        headers = [(b"content-type", b"application/json"), (b"server-timing", timing.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _answer(self, path: str, headers: dict[bytes, bytes], body: bytes) -> tuple[int, Any]:
        if path != "/v1/classify":
            return 404, {"error": f"there is nothing at {path}"}
        self.asked.append(headers[b"content-type"].decode())
        if self.key and headers.get(b"authorization") != f"Bearer {self.key}".encode():
            return 401, {"error": "a key is needed, as Authorization: Bearer KEY"}
        if self.busy:
            self.busy -= 1
            return 503, {"error": "the queue is full, try again in 1 s"}
        try:
            return 200, await asyncio.to_thread(self.classify, body)
        except InputError as err:
            return STATUS.get(type(err), 422), {"error": str(err)}


@contextmanager
def running_page_server() -> Iterator[PageServer]:
    """Run one on a free port, in a thread."""
    endpoint = PageServer()
    server = uvicorn.Server(uvicorn.Config(endpoint, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start"
        time.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield endpoint
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
