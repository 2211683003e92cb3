"""From a request to its route: the key, the answer or the error in JSON, the count and the line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.errors import InferenceError
from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.asgi import (
    Answer,
    App,
    ClientGoneError,
    Message,
    Receive,
    Rejected,
    Scope,
    Send,
    as_rejected,
    error_answer,
    header,
    json_answer,
)
from serve.http.bodies import BodyMemory, Held
from serve.http.classify import Classify
from serve.http.keys import ApiKeys
from serve.http.openapi import docs_page, openapi_document
from serve.metrics.replica_metrics import CONTENT_TYPE, ServeMetrics
from serve.model.backend import Backend
from serve.parts import PARTS, load_part

logger = logging.getLogger(__name__)

# Answered without a key: who watches over the endpoint has none.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz", "/"})
# The routes that take images, as `route_name` calls them: those ask the queue before they read a body.
ADMITTED = frozenset({"/v1/classify", "/v2/models/infer"})
# The page is where a key is typed in; it shows the model's name and the bundled photographs.
OPEN_BELOW = "/page/"
_HTML = b"text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Extras:
    """What the endpoint has beside its model; everything may be left out.

    Attributes:
        metrics: Counts requests.
        render_metrics: Gives the body of /metrics; awaited.
        admit: Raises OverloadedError where so many images would not fit into the queue; asked before a body is read.
        keys: Who may come in.
        access_log: Where requests are written.
        memory: The budget of all bodies, where it is shared with gRPC.
    """

    metrics: ServeMetrics | None = None
    render_metrics: Callable[[], Any] | None = None
    admit: Callable[[int], None] | None = None
    keys: ApiKeys | None = None
    access_log: AccessLog | None = None
    memory: BodyMemory | None = None


class _Watched:
    """`send`, with a note of what was answered, and how long that took told to the client (Server-Timing)."""

    __slots__ = ("_began", "_send", "status")

    def __init__(self, send: Send, began: float) -> None:
        self._began = began
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            spent = b"server;dur=%.2f" % (1000 * (time.perf_counter() - self._began))
            message["headers"] = [*message["headers"], (b"server-timing", spent)]
        await self._send(message)


class Endpoint:
    """All that HTTP reaches, as one ASGI application.

    Args:
        backend: The model.
        config: Limits and defaults.
        extras: Whatever else there is.
    """

    def __init__(self, backend: Backend, config: ServeConfig, extras: Extras) -> None:
        self._backend = backend
        self._extras = extras
        self._memory = extras.memory or BodyMemory(config.max_body_memory)
        self._classify = Classify(backend, config)
        self._parts: dict[str, App] = {}
        paths: dict[str, object] = {}
        for name in dict.fromkeys(PARTS.values()):
            module = load_part(name)
            if module is not None:
                part = module.build(backend, config)
                self._parts |= {root: part for root, owner in PARTS.items() if owner == name}
                paths |= getattr(module, "OPENAPI_PATHS", {})
        document = openapi_document(config, backend, paths)
        self._openapi = json_answer(document)
        self._docs = Answer(docs_page(document), content_type=_HTML)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever becomes of it."""
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1000})
        began = time.perf_counter()
        path = scope["path"]
        root = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        path = path or "/"
        metrics = self._extras.metrics
        if metrics is not None:
            metrics.in_flight.inc()
        watched = _Watched(send, began)
        held = scope[Held.KEY] = Held(self._memory)
        kind: str | None = "gone"
        try:
            kind = await self._answer(path, scope, receive, watched)
        finally:
            # Also where the task was cancelled: the client has closed the connection.
            held.close()
            if metrics is not None:
                metrics.in_flight.dec()
            self._note(scope, path, watched.status or 499, time.perf_counter() - began, kind)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: _Watched) -> str | None:
        """Answer one request; return the kind of its error, or None."""
        try:
            if self._extras.keys is not None and not (path in OPEN or path.startswith(OPEN_BELOW)):
                self._extras.keys.check(header(scope, b"authorization"))
            if self._extras.admit is not None and scope["method"] == "POST" and route_name(path) in ADMITTED:
                self._extras.admit(1)
            await self._route(path, scope, receive, send)
        except ClientGoneError:
            return "gone"
        except Exception as err:  # the edge: whatever it is, the client gets JSON and no traceback
            rejected = as_rejected(err)
            if rejected is None:
                logger.exception("request failed path=%s", path)
                text = "the model failed on this request" if isinstance(err, InferenceError) else "internal error"
                rejected = Rejected(500, text, kind="internal")
            if send.status:
                raise
            await error_answer(rejected).send(send)
            # It has the frames that it passed through, and these have it: a body of 20 MB would wait for the collector.
            err.__traceback__ = None
            return rejected.kind
        return None if send.status < 400 else str(send.status)

    async def _route(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        own = self._own(path)
        if path == "/v1/classify":
            _allow(scope, "POST")
            await (await self._classify(scope, receive)).send(send)
        elif own is not None:
            _allow(scope, "GET", "HEAD")
            await (await own()).send(send)
        else:
            part = self._parts.get(path[1:].split("/", 1)[0])
            if part is None:
                raise Rejected(404, f"there is no {path[:200]!r} here; /docs lists what there is", kind="no_route")
            await part(scope, receive, send)

    def _own(self, path: str) -> Callable[[], Any] | None:
        return {
            "/openapi.json": self._give_openapi,
            "/docs": self._give_docs,
            "/metrics": self._give_metrics,
            "/healthz": self._give_health,
        }.get(path)

    async def _give_openapi(self) -> Answer:
        return self._openapi

    async def _give_docs(self) -> Answer:
        return self._docs

    async def _give_health(self) -> Answer:
        if not self._backend.is_ready:
            raise Rejected(503, "the model is not ready yet", headers=((b"retry-after", b"1"),), kind="not_ready")
        return json_answer({"status": "ok"})

    async def _give_metrics(self) -> Answer:
        if self._extras.render_metrics is None:
            raise Rejected(404, "this endpoint was built without metrics", kind="no_route")
        return Answer(await self._extras.render_metrics(), content_type=CONTENT_TYPE)

    def _note(self, scope: Scope, path: str, status: int, seconds: float, kind: str | None) -> None:
        metrics, log = self._extras.metrics, self._extras.access_log
        if metrics is not None:
            metrics.request(route_name(path), status, seconds, kind)
        if log is not None:
            client = scope.get("client")
            length = header(scope, b"content-length") or b"0"
            log.add(
                client=client[0] if client else None,
                method=scope["method"],
                path=path,
                status=status,
                ms=round(1000 * seconds, 2),
                bytes=int(length) if length.isdigit() else None,
                request_id=(header(scope, b"x-request-id") or b"").decode("latin-1"),
                **({"error": kind} if kind else {}),
            )


def route_name(path: str) -> str:
    """Return a path's route for the metrics: few names, whatever is asked for."""
    if path in ("/", "/v1/classify", "/docs", "/openapi.json", "/metrics", "/healthz", "/v2", "/v2/models"):
        return path
    if path.startswith("/v2/health/"):
        return "/v2/health"
    if path.startswith("/v2/models/"):
        return "/v2/models/infer" if path.endswith("/infer") else "/v2/models/..."
    return "/page" if path.startswith("/page/") else "other"


def _allow(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        raise Rejected(
            405, f"method must be {allowed}, got {scope['method'][:20]}", headers=((b"allow", allowed.encode()),)
        )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
