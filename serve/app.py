"""The endpoint as one raw ASGI application, and the Ray Serve application around it.

    build_asgi(backend, config)        everything that HTTP reaches; needs no Ray, so unit tests give it a fake backend
    build_app(ServeConfig) -> Application     `serve run serve.app:build_app model=NAME`, `serve deploy`, `shardlabel serve`

How routes are mounted. A *part* is a sub-application: `(backend, config) -> asgi.App` (see `serve.asgi`), found by the
first part of the path. It is called as `await part(scope, receive, send)` with the scope as it came (no root_path is
cut off), reads bodies by `asgi.read_body` (bounded; gzip and deflate undone), takes its deadline from
`asgi.deadline_of`, and may raise `asgi.Rejected` or an error of `models.errors` until it has begun to answer: here that
becomes `{"error": ...}`, a count and a line in the access log. Keys are asked for here, before a part is called, but
not for `OPEN` paths.

    /v2, /v2/...           serve.oip.http.build(backend, config)
    /, /page/...           serve.page.build(backend, config)

A part may bring its own section of the OpenAPI document: a module-level `OPENAPI_PATHS: dict[str, object]` beside
`build`. A part that is not installed is left out, and its paths are 404.

gRPC. Serve calls the method of the ingress class that is named as the RPC, with the request's bytes where the servicer
function registers no deserializer, and sends what `SerializeToString()` of the result gives. `serve.replica` mixes in
`serve.oip.grpc.Methods` where it is installed: a class whose `async def ModelInfer(self, request, grpc_context)` and so
on use `self.backend: Backend` and `self.config: ServeConfig`; `serve.oip.grpc.add_to_server(servicer, server)` is the
servicer function. Errors that a method raises are its own to turn into gRPC's codes.
"""

# No `from __future__ import annotations` here: Serve's typed builders want the annotation itself, not its name.

import importlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import InferenceError
from serve.access_log import AccessLog
from serve.api_keys import ApiKeys
from serve.asgi import (
    Answer,
    App,
    BodyMemory,
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
from serve.backend import Backend
from serve.classify import Classify
from serve.config import ServeConfig
from serve.metrics import CONTENT_TYPE, ServeMetrics
from serve.openapi import docs_page, openapi_document

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

# Answered without a key: who watches over the endpoint has none.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz", "/"})
# The page is where a key is typed in; it shows the model's name and the bundled photographs.
OPEN_BELOW = "/page/"
# Modules with `build(backend, config) -> App`, by the paths that are theirs.
PARTS = {"v2": "serve.oip.http", "": "serve.page", "page": "serve.page"}
_HTML = b"text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Extras:
    """What the endpoint has beside its model; everything may be left out.

    Attributes:
        metrics: Counts requests.
        render_metrics: Gives the body of /metrics; awaited.
        admit: Raises OverloadedError where so many images would not fit into the queue.
        keys: Who may come in.
        access_log: Where requests are written.
    """

    metrics: ServeMetrics | None = None
    render_metrics: Callable[[], Any] | None = None
    admit: Callable[[int], None] | None = None
    keys: ApiKeys | None = None
    access_log: AccessLog | None = None


def build_asgi(backend: Backend, config: ServeConfig, extras: Extras | None = None) -> App:
    """Return the whole endpoint as one ASGI application; see the head of this file."""
    return _Endpoint(backend, config, extras or Extras())


def build_app(args: ServeConfig) -> "Application":
    """Build the Ray Serve application: one deployment, which is ingress, decoder and model.

    Args:
        args: The settings; strings of `serve run serve.app:build_app model=NAME` are converted.

    Raises:
        ConfigError: They cannot be used; says why.
        UnknownModelError: There is no such model.
    """
    from serve.replica import build_application

    return build_application(args if isinstance(args, ServeConfig) else ServeConfig.model_validate(args))


def load_part(name: str) -> Any:  # noqa: ANN401 (a module)
    """Import a part's module; None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is not None and name.startswith(err.name):
            return None
        raise


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


class _Endpoint:
    """Finds the route, asks for the key, turns errors into answers, counts and logs."""

    def __init__(self, backend: Backend, config: ServeConfig, extras: Extras) -> None:
        self._backend = backend
        self._extras = extras
        self._memory = BodyMemory(config.max_body_memory)
        self._classify = Classify(backend, config, extras.admit)
        self._parts: dict[str, App] = {}
        paths: dict[str, object] = {}
        for root, name in PARTS.items():
            module = load_part(name)
            if module is not None:
                self._parts[root] = module.build(backend, config)
                paths |= getattr(module, "OPENAPI_PATHS", {})
        self._openapi = json_answer(openapi_document(config, backend, paths))
        self._docs = Answer(docs_page(openapi_document(config, backend, paths)), content_type=_HTML)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        scope[BodyMemory.KEY] = self._memory
        kind: str | None = "gone"
        try:
            kind = await self._answer(path, scope, receive, watched)
        finally:
            # Also where the task was cancelled: the client has closed the connection.
            self._memory.give_back(scope)
            if metrics is not None:
                metrics.in_flight.dec()
            self._note(scope, path, watched.status or 499, time.perf_counter() - began, kind)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: _Watched) -> str | None:
        """Answer one request; return the kind of its error, or None."""
        try:
            if self._extras.keys is not None and not (path in OPEN or path.startswith(OPEN_BELOW)):
                self._extras.keys.check(header(scope, b"authorization"))
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
            log.add(
                client=client[0] if client else None,
                method=scope["method"],
                path=path,
                status=status,
                ms=round(1000 * seconds, 2),
                bytes=int(header(scope, b"content-length") or 0),
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
