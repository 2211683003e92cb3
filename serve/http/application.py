"""Around the router: the key, the budget of bodies, errors in JSON, the count and the line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Router
from starlette.types import Message, Receive, Scope, Send

from models.errors import InferenceError
from serve import tracing
from serve.http.access_log import AccessLog
from serve.http.asgi import MODEL, Rejected, as_rejected, error_response
from serve.http.bodies import BodyMemory, Held
from serve.http.keys import ApiKeys
from serve.http.trace_context import trace_field
from serve.metrics.replica_metrics import ServeMetrics
from serve.model.outcomes import set_request_id
from serve.model.repository import Repository

logger = logging.getLogger(__name__)

# Answered without a key: who watches over the endpoint has none.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz", "/"})
# The page is where a key is typed in; it shows the model's name and the bundled photographs.
OPEN_BELOW = "/page/"


@dataclass(frozen=True, slots=True)
class Extras:
    """What the endpoint has beside its model; everything may be left out.

    Attributes:
        metrics: Counts requests.
        render_metrics: Gives the body of /metrics; awaited.
        keys: Who may come in.
        access_log: Where requests are written.
        memory: The budget of all bodies, where it is shared with gRPC.
        control: Loads and unloads models as callers say; None where they may not.
    """

    metrics: ServeMetrics | None = None
    render_metrics: Callable[[], Any] | None = None
    keys: ApiKeys | None = None
    access_log: AccessLog | None = None
    memory: BodyMemory | None = None
    control: Repository | None = None


class _Watched:
    """`send`, with a note of what was answered, and how long that took told to the client (Server-Timing)."""

    __slots__ = ("_began", "_has_body", "_send", "status")

    def __init__(self, send: Send, began: float, method: str) -> None:
        self._began = began
        self._has_body = method != "HEAD"
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            spent = b"server;dur=%.2f" % (1000 * (time.perf_counter() - self._began))
            message["headers"] = [*message["headers"], (b"server-timing", spent)]
        elif not self._has_body:
            message["body"] = b""
        await self._send(message)


class Application:
    """All that HTTP reaches, as one ASGI application.

    Args:
        routes: They may raise `Rejected` and the errors of `models.errors` until they have begun to answer.
        memory: The budget of all bodies.
        extras: Whatever else there is.
    """

    def __init__(self, routes: Sequence[BaseRoute], memory: BodyMemory, extras: Extras) -> None:
        self._router = Router(routes, redirect_slashes=False)
        self._memory = memory
        self._extras = extras

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever becomes of it."""
        if scope["type"] != "http":
            return await self._router(scope, receive, send)
        began = time.perf_counter()
        held = Held(self._memory)
        path = _path(scope)
        # With "app" there, the router raises what it has no route for, where it would answer in plain text.
        scope = {**scope, "path": path, "root_path": "", "app": self, Held.KEY: held}
        metrics = self._extras.metrics
        if metrics is not None:
            metrics.in_flight.inc()
        set_request_id(Headers(scope=scope).get("x-request-id", ""))
        watched = _Watched(send, began, scope["method"])
        kind: str | None = "gone"
        with tracing.http_request(scope, route_name(path), path):
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
            self._let_in(path, scope)
            await self._router(scope, receive, send)
        except ClientDisconnect:
            return "gone"
        except Exception as err:  # the edge: whatever it is, the client gets JSON and no traceback
            rejected = _no_route(err, path, scope["method"]) if isinstance(err, HTTPException) else as_rejected(err)
            if rejected is None:
                logger.exception("request failed path=%s", path)
                text = "the model failed on this request" if isinstance(err, InferenceError) else "internal error"
                rejected = Rejected(500, text, kind="internal")
            if send.status:
                raise
            await error_response(rejected)(scope, receive, send)
            # It has the frames that it passed through, and these have it: a body of 20 MB would wait for the collector.
            err.__traceback__ = None
            return rejected.kind
        return None if send.status < 400 else str(send.status)

    def _let_in(self, path: str, scope: Scope) -> None:
        """Raise what a request is refused with before it is looked at."""
        if self._extras.keys is not None and not (path in OPEN or path.startswith(OPEN_BELOW)):
            self._extras.keys.check(Headers(scope=scope).get("authorization", "").encode("latin-1"))
        if not path.isprintable():  # the router's patterns would let a line feed at the end pass
            raise HTTPException(404)

    def _note(self, scope: Scope, path: str, status: int, seconds: float, kind: str | None) -> None:
        metrics, log = self._extras.metrics, self._extras.access_log
        tracing.answered(status, kind, {"http.response.status_code": status})
        if metrics is not None:
            metrics.request(route_name(path), status, seconds, kind, scope.get(MODEL))
        if log is not None:
            client = scope.get("client")
            headers = Headers(scope=scope)
            length = headers.get("content-length", "0")
            log.add(
                client=client[0] if client else None,
                method=scope["method"],
                path=path,
                status=status,
                ms=round(1000 * seconds, 2),
                bytes=int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None,
                request_id=headers.get("x-request-id", ""),
                **trace_field(headers.getlist("traceparent")),
                **({"error": kind} if kind else {}),
            )


def _path(scope: Scope) -> str:
    """Return the path below where the endpoint is mounted; the protocol's may have a slash at their end."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    path = path.encode(errors="replace").decode()  # half a surrogate has no place in JSON, and the log is JSON
    return path.rstrip("/") if path.startswith("/v2/") else path


def _no_route(err: HTTPException, path: str, method: str) -> Rejected:
    if err.status_code == 405 and err.headers:
        allow = ", ".join(sorted(err.headers["Allow"].split(", ")))
        message = f"{path[:200]!r} takes {allow}, got {method[:20]}"
        return Rejected(405, message, headers=((b"allow", allow.encode()),))
    return Rejected(404, f"there is no {path[:200]!r} here; /docs lists what there is", kind="no_route")


def route_name(path: str) -> str:
    """Return a path's route for the metrics: few names, whatever is asked for."""
    if path in (
        "/",
        "/v1/classify",
        "/v1/embeddings",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/healthz",
        "/v2",
        "/v2/models",
    ):
        return path
    if path.startswith("/v2/health/"):
        return "/v2/health"
    if path.startswith("/models/"):
        return "/models"
    if path.startswith("/v2/models/"):
        return "/v2/models/infer" if path.endswith("/infer") else "/v2/models/..."
    return "/page" if path.startswith("/page/") else "other"
