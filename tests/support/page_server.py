"""The real endpoint for the tests of the page, in this process, with a state that tests can change at any time.

`shardlabel serve` takes ten seconds to start, and cannot be made busy or not ready on demand. This server has no Ray
Serve; model, batching, routes, keys and errors are those of the endpoint.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from models.errors import OverloadedError
from serve.config import ServeConfig, plan_replica
from serve.http.in_flight import Extras
from serve.http.keys import ApiKeys
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.settled import settle
from serve.routes import build_asgi

KEY = "Geheim-17"
LIMIT_BYTES = 1_000_000


class PageServer:
    """The endpoint; its attributes may be changed while it runs.

    Attributes:
        url: Its URL.
        is_ready: Whether it reports that it is ready.
        wants_key: Whether it requires KEY.
        busy: Number of following classify requests that find the queue full.
        asked: Content types of the classify requests, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.reset()
        keys = folder / "keys"
        keys.write_text(f"{KEY}\n")
        config = ServeConfig(model="efficientnet-lite0", max_request_bytes=LIMIT_BYTES)
        settled = settle("efficientnet-lite0", config, has_gpu=False)
        self.engine = Engine(settled, config, plan_replica(config, on_gpu=False, cpus=1))
        self.models = Models(_Backend(self.engine, self))
        self._open = build_asgi(self.models, config)
        self._closed = build_asgi(self.models, config, Extras(keys=ApiKeys(keys)))

    def reset(self) -> None:
        """Become ready again, without a key and with an empty queue."""
        self.is_ready, self.wants_key, self.busy = True, False, 0
        self.asked.clear()

    async def __call__(self, scope, receive, send) -> None:
        """Answer one ASGI request, under "/" or "/app"."""
        if scope["type"] == "http" and scope["path"].endswith("/v1/classify"):
            self.asked += [value.decode() for name, value in scope["headers"] if name == b"content-type"]
        if scope["type"] == "http" and scope["path"].split("/")[1] == "app":
            scope = {**scope, "root_path": "/app"}
        await (self._closed if self.wants_key else self._open)(scope, receive, send)


class _Backend:
    """The engine, with the readiness and queue that the test sets."""

    def __init__(self, engine: Engine, server: PageServer, name: str = "efficientnet-lite0") -> None:
        self._engine, self._server = engine, server
        self.spec = engine.spec.model_copy(update={"name": name})

    @property
    def is_ready(self) -> bool:
        return self._server.is_ready

    def admit(self, images: int) -> None:
        if self._server.busy:
            self._server.busy -= 1
            raise OverloadedError("the queue is full; try again in 1 s", retry_after_s=1.0)
        self._engine.admit(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@contextmanager
def another_model(server: PageServer, name: str) -> Iterator[None]:
    """Serve a second model until the block ends."""
    before = tuple(server.models)
    server.models.replace((*before, _Backend(server.engine, server, name)))
    try:
        yield
    finally:
        server.models.replace(before)


@contextmanager
def running_page_server() -> Iterator[PageServer]:
    """Run a server on a free port, in a thread."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = PageServer(Path(folder))
        config = uvicorn.Config(
            endpoint, host="127.0.0.1", port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            yield endpoint
        finally:
            server.should_exit = True
            thread.join()
            endpoint.engine.close()
