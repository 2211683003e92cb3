"""Around the router: the key, the budget of bodies, errors in JSON, the count and the line in the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Router
from starlette.types import Message, Receive, Scope, Send

from serve.http.asgi import IN_FLIGHT, Rejected, error_response, rejection, whole_number
from serve.http.bodies import Held
from serve.http.in_flight import Extras, InFlight, observed

# Answered without a key: probes have none.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz", "/"})
# The page is where a key is typed in; it shows the model's name and the bundled photographs.
OPEN_BELOW = "/page/"
# What the metrics call a path's route; every other path is "other".
_ROUTES = frozenset(
    ("/", "/v1/classify", "/v1/embeddings", "/docs", "/openapi.json", "/metrics", "/healthz", "/v2", "/v2/models")
)


class Application:
    """All that HTTP reaches, as one ASGI application.

    Args:
        routes: They may raise `Rejected` and the errors of `models.errors` until they have begun to answer.
        extras: What bounds, counts and logs requests, and checks keys.
    """

    def __init__(self, routes: Sequence[BaseRoute], extras: Extras) -> None:
        self._router = Router(routes, redirect_slashes=False)
        self._extras = extras

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; one that fails gets JSON."""
        if scope["type"] != "http":
            return await self._router(scope, receive, send)
        path, method, headers = _path(scope), scope["method"], Headers(scope=scope)
        client, _ = scope.get("client") or (None, None)
        size, held = whole_number(headers.get("content-length", "0")), Held(self._extras.memory)
        scheme = scope.get("scheme", "http")
        request = InFlight(method, path, route_name(path), headers, client, size, held, scheme)
        # With "app" in the scope, the router raises where it has no route; else it would answer in plain text. No route has
        # an empty path, but the patterns of routes allow a line feed at the end.
        looked_for = path if path.isprintable() else ""
        scope = {**scope, "path": looked_for, "root_path": "", "app": self, IN_FLIGHT: request}
        has_begun = False

        async def watched(message: Message) -> None:
            """Send, note what was answered, and tell the client how long that took."""
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun, request.status = True, message["status"]
                spent = b"server;dur=%.2f" % (1000 * (time.perf_counter() - request.began))
                message["headers"] = [*message["headers"], (b"server-timing", spent)]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        with observed(self._extras, request), contextlib.suppress(ClientDisconnect):
            try:
                if self._extras.keys is not None and not (path in OPEN or path.startswith(OPEN_BELOW)):
                    self._extras.keys.check(headers.get("authorization"))
                await self._router(scope, receive, watched)
                request.kind = None if request.status < 400 else str(request.status)
            except Exception as err:  # the edge: whatever it is, the client gets JSON and no traceback
                if has_begun or isinstance(err, ClientDisconnect):
                    raise
                rejected = _rejection(err, path, method)
                await error_response(rejected)(scope, receive, watched)
                request.kind = rejected.kind


def _path(scope: Scope) -> str:
    """Return the path below the endpoint's mount point; those of the protocol may end with a slash."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    path = path.encode(errors="replace").decode()  # half a surrogate has no place in JSON, and the log is JSON
    return path.rstrip("/") if path.startswith("/v2/") else path


def _rejection(err: Exception, path: str, method: str) -> Rejected:
    if not isinstance(err, HTTPException):  # else the router's
        return rejection(err, path)
    if err.status_code != 405 or not err.headers:
        return Rejected(404, f"there is no {path[:200]!r} here; /docs lists what there is", kind="no_route")
    allow = ", ".join(sorted(err.headers["Allow"].split(", ")))
    return Rejected(405, f"{path[:200]!r} takes {allow}, got {method[:20]}", headers=((b"allow", allow.encode()),))


def route_name(path: str) -> str:
    """Return a path's route for the metrics: one of few names."""
    if path.startswith("/v2/models/"):
        return "/v2/models/infer" if path.endswith("/infer") else "/v2/models/..."
    for below in ("/v2/health", "/models", "/page"):
        if path.startswith(f"{below}/"):
            return below
    return path if path in _ROUTES else "other"
