"""The real application and model behind real sockets, without Ray: uvicorn and gRPC in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvicorn

from models.spec import Precision
from serve.config import ServeConfig, plan_replica
from serve.http.in_flight import Extras
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.settled import settle
from serve.oip.grpc.ingress import Methods
from serve.oip.grpc.service import add_to_server
from serve.routes import build_asgi
from tests.support.grpc_service import Servicer


@dataclass(frozen=True)
class OipServer:
    """The addresses of a server, `host:port`, and its model."""

    http: str
    grpc: str
    model: str
    side: int


class _Ingress(Methods):
    def __init__(self, models: Models, config: ServeConfig) -> None:
        self.models = models
        self.config = config
        self.extras = Extras()


@contextlib.contextmanager
def oip_server(model: str | Path, precision: Precision, **settings: object) -> Iterator[OipServer]:
    """Serve a model until the block ends; `settings` are those of `ServeConfig`."""
    started: dict[str, object] = {}
    ready = threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(str(model), precision, settings, started, ready)), daemon=True
    )
    thread.start()
    assert ready.wait(60), "the server did not start"
    try:
        yield started["server"]
    finally:
        started["stop"]()
        thread.join(30)
        assert not thread.is_alive()


async def _serve(model: str, precision: Precision, settings, started, ready) -> None:
    config = ServeConfig(model=model, precision=precision.value, **settings)
    engine = Engine(settle(model, config, has_gpu=False), config, plan_replica(config, on_gpu=False, cpus=1))
    models = Models(engine)
    rpc = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_to_server(Servicer(_Ingress(models, config)), rpc)
    rpc_port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    web = uvicorn.Server(
        uvicorn.Config(build_asgi(models, config), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    )
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(web.serve())
    while not web.started:
        await asyncio.sleep(0.01)
    port = web.servers[0].sockets[0].getsockname()[1]
    started["server"] = OipServer(
        f"127.0.0.1:{port}", f"127.0.0.1:{rpc_port}", engine.spec.name, engine.spec.preprocessing.crop
    )
    started["stop"] = lambda: loop.call_soon_threadsafe(setattr, web, "should_exit", True)
    ready.set()
    await serving
    await rpc.stop(1)
    engine.close()
