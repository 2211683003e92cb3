"""The protocol's HTTP routes, as an ASGI application for /v2 and everything below it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from serve.config import ServeConfig
from serve.http.asgi import Answer, App, Receive, Rejected, Scope, Send, deadline_of, header
from serve.http.bodies import INLINE_BYTES, Held, load_json, read_body
from serve.model.backend import Backend
from serve.oip.compression import choose_encoding, compress
from serve.oip.endpoint import Endpoint, Limits
from serve.oip.faults import malformed, not_ready, shown
from serve.oip.openapi import PATHS
from serve.oip.request import InferRequest, parse_request
from serve.oip.served import ServedModel, check_ready

OPENAPI_PATHS = PATHS
HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"
# Below this much, packing an answer is cheaper than handing it to a thread.
_PACK_INLINE_BYTES = 256 * 1024
# Of a request that brings no images: a name or two.
_MAX_OPTIONS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Request:
    """An HTTP request, its body not yet read.

    Attributes:
        scope: ASGI's.
        receive: ASGI's.
        model: Of the path; "" where it has none.
        version: Likewise; None where it has none.
        started: `time.monotonic()` at its arrival.
        deadline: `time.monotonic()` until which the client waits.
    """

    scope: Scope
    receive: Receive
    model: str
    version: str | None
    started: float
    deadline: float


_Handler = Callable[[_Request], Awaitable[Answer]]


def build(backend: Backend, config: ServeConfig) -> App:
    """Build the part of the endpoint that answers /v2; see `serve.app`."""
    return HttpRoutes(Endpoint(backend, Limits.of(config)))


class HttpRoutes:
    """The routes, in front of an endpoint. Every answer but a binary one is JSON; errors are raised, see `serve.http.asgi`.

    Args:
        endpoint: What answers.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        model = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
        repository = r"/v2/repository/models/(?P<model>[^/]+)"
        routes: tuple[tuple[str, str, _Handler], ...] = (
            ("POST", model + "/infer", self._infer),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._ready),
            ("GET", "/v2", self._server_metadata),
            ("GET", "/v2/models", self._list_models),
            ("GET", "/v2/models/stats", self._all_statistics),
            ("GET", model, self._model_metadata),
            ("GET", model + "/ready", self._model_ready),
            ("GET", model + "/config", self._model_config),
            ("GET", model + "/stats", self._model_statistics),
            ("POST", "/v2/repository/index", self._repository_index),
            ("POST", repository + "/load", self._load),
            ("POST", repository + "/unload", self._unload),
            ("*", r"/v2/(models/[^/]+/)?trace/setting|/v2/logging|/v2/(system|cuda)sharedmemory/.+", self._not_offered),
        )
        self._routes = tuple((method, re.compile(pattern), handler) for method, pattern, handler in routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (ASGI).

        Raises:
            Rejected, InputError, OverloadedError, DeadlineError: Before anything is sent.
        """
        started = time.monotonic()
        deadline = deadline_of(scope, self._endpoint.limits.deadline_s)
        handler, found = self._find(scope["method"], _path(scope))
        model, version = (found.groupdict().get(name) for name in ("model", "version"))
        answer = await handler(_Request(scope, receive, model or "", version, started, deadline))
        await answer.send(send)

    def _find(self, method: str, path: str) -> tuple[_Handler, re.Match[str]]:
        allowed: list[str] = []
        for wanted, pattern, handler in self._routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if wanted in (method, "*") or (wanted, method) == ("GET", "HEAD"):
                return handler, found
            if wanted not in allowed:
                allowed.append(wanted)
        if allowed:
            allow = ", ".join(allowed)
            message = f"{path[:200]!r} takes {allow}, got {method}"
            raise Rejected(405, message, headers=((b"allow", allow.encode()),))
        raise Rejected(404, f"the Open Inference Protocol has no route {path[:200]!r}")

    async def _infer(self, request: _Request) -> Answer:
        model = self._model(request)
        response = await self._endpoint.infer(
            model,
            lambda: self._read(model, request),
            started=request.started,
            deadline=request.deadline,
        )
        content, json_bytes = response.encode()
        headers = []
        if json_bytes is not None:
            headers.append((HEADER_LENGTH, b"%d" % json_bytes))
        encoding = choose_encoding((header(request.scope, b"accept-encoding") or b"").decode("latin-1"))
        if encoding is not None:
            small = len(content) <= _PACK_INLINE_BYTES
            content = compress(content, encoding) if small else await asyncio.to_thread(compress, content, encoding)
            headers += [(b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")]
        kind = b"application/json" if json_bytes is None else BINARY
        return Answer(content, content_type=kind, headers=tuple(headers))

    async def _read(self, model: ServedModel, request: _Request) -> InferRequest:
        length = _header_length(request)
        limits = self._endpoint.limits
        held: Held = request.scope[Held.KEY]

        def parse(body: bytes) -> InferRequest:
            if length == 0:
                # Binary, as the protocol says; who names JSON is somebody at a terminal, and gets it.
                as_json = b"application/json" in (header(request.scope, b"accept") or b"")
                return InferRequest(inputs=(model.raw_input(memoryview(body)),), binary_output=not as_json)
            json_bytes = len(body) if length is None else min(length, len(body))
            # Images are cut out of the body; what JSON has is parsed first, and text is base64.
            held.set(2 * len(body) + json_bytes)
            return parse_request(body, length, limits.max_values)

        # Binary data are not parsed; only what is before them is.
        inline = INLINE_BYTES if length is None or length > INLINE_BYTES else limits.max_request_bytes
        return await read_body(
            request.scope, request.receive, limits.max_request_bytes, request.deadline, parse, inline
        )

    async def _options(self, request: _Request) -> dict[str, object]:
        """Read the optional JSON body of a repository request."""
        max_bytes = min(_MAX_OPTIONS_BYTES, self._endpoint.limits.max_request_bytes)
        return await read_body(request.scope, request.receive, max_bytes, request.deadline, _parse_options)

    async def _live(self, _: _Request) -> Answer:
        return _json({"live": True})

    async def _ready(self, _: _Request) -> Answer:
        if not self._endpoint.is_ready:
            raise not_ready("the model is not ready yet")
        return _json({"ready": True})

    async def _server_metadata(self, _: _Request) -> Answer:
        return _json(self._endpoint.server_metadata())

    async def _list_models(self, _: _Request) -> Answer:
        return _json({"models": self._endpoint.model_names()})

    async def _all_statistics(self, _: _Request) -> Answer:
        return _json(self._endpoint.statistics(self._endpoint.model_names()))

    async def _model_metadata(self, request: _Request) -> Answer:
        return _json(self._endpoint.model_metadata(self._model(request)))

    async def _model_ready(self, request: _Request) -> Answer:
        model = self._model(request)
        check_ready(model)
        return _json({"name": model.name, "ready": True})

    async def _model_config(self, request: _Request) -> Answer:
        return _json(self._endpoint.model_config(self._model(request)))

    async def _model_statistics(self, request: _Request) -> Answer:
        return _json(self._endpoint.statistics([self._model(request).name]))

    async def _repository_index(self, request: _Request) -> Answer:
        only_ready = (await self._options(request)).get("ready", False)
        if type(only_ready) is not bool:
            raise malformed(f"ready must be true or false, got {shown(only_ready)}")
        return _json(self._endpoint.repository_index(only_ready=only_ready))

    async def _load(self, request: _Request) -> Answer:
        model = self._model(request)
        if (await self._options(request)).get("parameters"):
            raise malformed("a model's configuration and files cannot be replaced by a request")
        check_ready(model)
        # A model's file is known by its SHA-256: where it is loaded, there is nothing to load anew.
        return _json({"name": model.name, "state": "READY"})

    async def _unload(self, request: _Request) -> Answer:
        name = self._model(request).name
        raise Rejected(404, f"unload is not offered: {name!r} is served for as long as its deployment runs")

    async def _not_offered(self, _: _Request) -> Answer:
        raise Rejected(404, "this extension is not offered; GET /v2 lists those that are")

    def _model(self, request: _Request) -> ServedModel:
        return self._endpoint.model(request.model, request.version)


def _path(scope: Scope) -> str:
    """Return the path below where the application is mounted, without a slash at its end."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    return path.rstrip("/")


def _header_length(request: _Request) -> int | None:
    """Return the bytes of the JSON part; 0 for a raw body, None where all is JSON."""
    text = header(request.scope, HEADER_LENGTH)
    if text is None:
        return None
    # A number with more digits is larger than any body, and need not be read.
    if not text.isdigit() or len(text) > 15:
        raise malformed(
            f"Inference-Header-Content-Length must be a number of bytes, got {text[:40].decode('latin-1')!r}"
        )
    return int(text)


def _parse_options(body: bytes) -> dict[str, object]:
    if not body.strip():
        return {}
    document = load_json(body, _MAX_OPTIONS_BYTES)
    if not isinstance(document, dict):
        raise malformed("the request must be a JSON object, or empty")
    return document


def _json(document: object) -> Answer:
    return Answer(orjson.dumps(document))
