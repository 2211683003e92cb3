"""Around the router: the key, the budget of bodies, errors in JSON, the count and the line in the log."""

from __future__ import annotations

import contextlib
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
# What the metrics call a path's route; every other path is "other".
_ROUTES = frozenset(
    ("/", "/v1/classify", "/v1/embeddings", "/docs", "/openapi.json", "/metrics", "/healthz", "/v2", "/v2/models")
)


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
        headers = Headers(scope=scope)
        # With "app" there, the router raises what it has no route for, where it would answer in plain text.
        scope = {**scope, "path": path, "root_path": "", "app": self, Held.KEY: held}
        if self._extras.metrics is not None:
            self._extras.metrics.in_flight.inc()
        set_request_id(headers.get("x-request-id", ""))
        status = 0

        async def watched(message: Message) -> None:
            """Send, note what was answered, and tell the client how long that took."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                spent = b"server;dur=%.2f" % (1000 * (time.perf_counter() - began))
                message["headers"] = [*message["headers"], (b"server-timing", spent)]
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        route = route_name(path)
        kind: str | None = "gone"  # also where the task is cancelled: the client has closed the connection
        with tracing.http_request(scope, route, path), contextlib.suppress(ClientDisconnect):
            try:
                self._let_in(path, headers)
                await self._router(scope, receive, watched)
                kind = None if status < 400 else str(status)
            except Exception as err:  # the edge: whatever it is, the client gets JSON and no traceback
                if status or isinstance(err, ClientDisconnect):
                    raise
                rejected = _rejected(err, path, scope["method"])
                await error_response(rejected)(scope, receive, watched)
                kind = rejected.kind
                # It has the frames that it passed through, and these have it: a body of 20 MB would wait for the collector.
                err.__traceback__ = None
            finally:
                held.close()
                seconds = time.perf_counter() - began
                self._note(scope, headers, route, status or 499, seconds, kind)

    def _let_in(self, path: str, headers: Headers) -> None:
        """Raise what a request is refused with before it is looked at."""
        if self._extras.keys is not None and not (path in OPEN or path.startswith(OPEN_BELOW)):
            self._extras.keys.check(headers.get("authorization", "").encode("latin-1"))
        if not path.isprintable():  # the router's patterns would let a line feed at the end pass
            raise HTTPException(404)

    def _note(self, scope: Scope, headers: Headers, route: str, status: int, seconds: float, kind: str | None) -> None:
        metrics, log = self._extras.metrics, self._extras.access_log
        tracing.answered(status, kind, {"http.response.status_code": status})
        if metrics is not None:
            metrics.in_flight.dec()
            metrics.request(route, status, seconds, kind, scope.get(MODEL))
        if log is not None:
            client = scope.get("client")
            length = headers.get("content-length", "0")
            log.add(
                client=client[0] if client else None,
                method=scope["method"],
                path=scope["path"],
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


def _rejected(err: Exception, path: str, method: str) -> Rejected:
    if isinstance(err, HTTPException):  # the router's
        if err.status_code != 405 or not err.headers:
            return Rejected(404, f"there is no {path[:200]!r} here; /docs lists what there is", kind="no_route")
        allow = ", ".join(sorted(err.headers["Allow"].split(", ")))
        message = f"{path[:200]!r} takes {allow}, got {method[:20]}"
        return Rejected(405, message, headers=((b"allow", allow.encode()),))
    rejected = as_rejected(err)
    if rejected is None:
        logger.error("request failed path=%s", path, exc_info=err)
        text = "the model failed on this request" if isinstance(err, InferenceError) else "internal error"
        rejected = Rejected(500, text, kind="internal")
    return rejected


def route_name(path: str) -> str:
    """Return a path's route for the metrics: few names, whatever is asked for."""
    if path.startswith("/v2/models/"):
        return "/v2/models/infer" if path.endswith("/infer") else "/v2/models/..."
    for below in ("/v2/health", "/models", "/page"):
        if path.startswith(f"{below}/"):
            return below
    return path if path in _ROUTES else "other"
