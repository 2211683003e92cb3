"""The protocol's HTTP routes: /v2 and everything below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.http.asgi import MODEL, JsonResponse, Rejected, deadline_of, not_ready
from serve.http.bodies import INLINE_BYTES, Held, load_json, read_body
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.oip import answers
from serve.oip.compression import choose_encoding, compress
from serve.oip.endpoint import Endpoint
from serve.oip.faults import malformed, shown
from serve.oip.request import InferRequest, parse_request
from serve.oip.served import ServedModel, check_ready

HEADER_LENGTH = "inference-header-content-length"
# Below this much, packing an answer is cheaper than handing it to a thread.
_PACK_INLINE_BYTES = 256 * 1024
# Of a request that brings no images: a name or two.
_MAX_OPTIONS_BYTES = 64 * 1024
# Extensions of the protocol that clients know and nobody offers here.
_NOT_OFFERED = (
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
)
_ABOUT_INFER = About(
    "Infer (Open Inference Protocol v2)",
    {JSON: answers.InferAnswer, BINARY: bytes},
    errors=(400, 404, 405, 413, 415, 422, 503, 504),
    text="Model M takes `image` BYTES [-1], one encoded image an element, and gives probabilities, label_ids, scores and "
    "labels; M-tensor takes and gives the model's own tensors. A bad image refuses the request, and is named by its index.",
    body={JSON: answers.InferRequest, BINARY: bytes},
    headers={HEADER_LENGTH: answers.HeaderLength},
)

_Handler = Callable[[Request], Awaitable[Response]]


def oip_routes(endpoint: Endpoint) -> list[Route]:
    """Return the routes, in front of an endpoint. Every answer but a binary one is JSON; errors are raised."""
    on = _Handlers(endpoint)
    load, model = "/v2/repository/models/{model}", "/v2/models/{model}"
    return [
        # First what is asked for most: the router looks at one route after the other, 2 microseconds each.
        Operation("POST", model + "/infer", on.infer, _ABOUT_INFER),
        _get("/v2", on.server, "The server, and the protocol's extensions that it has", answers.ServerMetadata),
        _get("/v2/health/live", on.live, "Whether the server runs", answers.Live, needs_key=False),
        _get("/v2/health/ready", on.ready, "Whether the models are ready", answers.Ready, 503, needs_key=False),
        _get("/v2/models", on.models, "The models' names", answers.ModelNames),
        _get("/v2/models/stats", on.all_statistics, "Counts of all models' requests here", answers.Statistics),
        *_routes_of_a_model(on, model),
        Operation("POST", model + "/versions/{version}/infer", on.infer, _ABOUT_INFER),
        *_routes_of_a_model(on, model + "/versions/{version}"),
        _post("/v2/repository/index", on.index, "The models with their states", list[answers.IndexEntry],
              answers.IndexRequest),
        _post(load + "/load", on.load, "Load a model", answers.Loaded, answers.LoadRequest, 404, 503),
        _post(load + "/unload", on.unload, "Unload a model", answers.Unloaded, answers.UnloadRequest, 404, 503),
        *(Route(path, on.not_offered, methods=["GET", "POST"]) for path in _NOT_OFFERED),
    ]  # fmt: skip


def _routes_of_a_model(on: _Handlers, path: str) -> list[Operation]:
    return [
        _get(path, on.model, "A model's tensors", answers.ModelMetadata, 404),
        _get(path + "/ready", on.model_ready, "Whether a model is ready", answers.ModelReady, 404, 503),
        _get(path + "/config", on.config, "A model's configuration", answers.ModelConfig, 404),
        _get(path + "/stats", on.statistics, "Counts of a model's requests here", answers.Statistics, 404),
    ]


def _get(path: str, handler: _Handler, summary: str, answer: Any, *errors: int, needs_key: bool = True) -> Operation:  # noqa: ANN401 (a type)
    return Operation("GET", path, handler, About(summary, {JSON: answer}, errors, needs_key=needs_key))


def _post(path: str, handler: _Handler, summary: str, answer: Any, body: Any, *errors: int) -> Operation:  # noqa: ANN401 (types)
    errors = (400, 405, 413, 415, *errors)
    return Operation("POST", path, handler, About(summary, {JSON: answer}, errors, body={JSON: body}, needs_body=False))


class _Handlers:
    """What answers each route."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def infer(self, request: Request) -> Response:
        started = time.monotonic()
        deadline = deadline_of(request, self._endpoint.limits.deadline_s)
        model = self._model(request)
        answer = await self._endpoint.infer(
            model, lambda: self._read(model, request, deadline), started=started, deadline=deadline
        )
        content, json_bytes = answer.encode()
        headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
        encoding = choose_encoding(request.headers.get("accept-encoding", ""))
        if encoding is not None:
            small = len(content) <= _PACK_INLINE_BYTES
            content = compress(content, encoding) if small else await asyncio.to_thread(compress, content, encoding)
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
        return Response(content, headers=headers, media_type=JSON if json_bytes is None else BINARY)

    async def _read(self, model: ServedModel, request: Request, deadline: float) -> InferRequest:
        length = _header_length(request)
        limits = self._endpoint.limits
        held: Held = request.scope[Held.KEY]

        def parse(body: bytes) -> InferRequest:
            if length == 0:
                # Binary, as the protocol says; who names JSON is somebody at a terminal, and gets it.
                as_json = JSON in request.headers.get("accept", "")
                return InferRequest(inputs=(model.raw_input(memoryview(body)),), binary_output=not as_json)
            json_bytes = len(body) if length is None else min(length, len(body))
            # Images are cut out of the body; what JSON has is parsed first, and text is base64.
            held.set(2 * len(body) + json_bytes)
            return parse_request(body, length, limits.max_values)

        # Binary data are not parsed; only what is before them is.
        inline = INLINE_BYTES if length is None or length > INLINE_BYTES else limits.max_request_bytes
        return await read_body(request, limits.max_request_bytes, deadline, parse, inline)

    async def _options(self, request: Request) -> dict[str, object]:
        """Read the optional JSON body of a repository request."""
        limits = self._endpoint.limits
        max_bytes = min(_MAX_OPTIONS_BYTES, limits.max_request_bytes)
        return await read_body(request, max_bytes, deadline_of(request, limits.deadline_s), _parse_options)

    async def live(self, _: Request) -> Response:
        return JsonResponse(answers.Live(live=True))

    async def ready(self, _: Request) -> Response:
        if not self._endpoint.is_ready:
            raise not_ready("not ready: no model can answer yet")
        return JsonResponse(answers.Ready(ready=True))

    async def server(self, _: Request) -> Response:
        return JsonResponse(self._endpoint.server_metadata())

    async def models(self, _: Request) -> Response:
        return JsonResponse(answers.ModelNames(models=self._endpoint.model_names()))

    async def all_statistics(self, _: Request) -> Response:
        return JsonResponse(self._endpoint.statistics(self._endpoint.model_names()))

    async def model(self, request: Request) -> Response:
        return JsonResponse(self._endpoint.model_metadata(self._model(request)))

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        check_ready(model)
        return JsonResponse(answers.ModelReady(name=model.name, ready=True))

    async def config(self, request: Request) -> Response:
        return JsonResponse(self._endpoint.model_config(self._model(request)))

    async def statistics(self, request: Request) -> Response:
        return JsonResponse(self._endpoint.statistics([self._model(request).name]))

    async def index(self, request: Request) -> Response:
        only_ready = (await self._options(request)).get("ready", False)
        if type(only_ready) is not bool:
            raise malformed(f"ready must be true or false, got {shown(only_ready)}")
        return JsonResponse(self._endpoint.repository_index(only_ready=only_ready))

    async def load(self, request: Request) -> Response:
        name = request.path_params["model"]
        await self._endpoint.load(name, (await self._options(request)).get("parameters"))
        return JsonResponse(answers.Loaded(name=name, state="READY"))

    async def unload(self, request: Request) -> Response:
        name = request.path_params["model"]
        await self._options(request)  # `unload_dependents` of Triton's clients: there are none
        await self._endpoint.unload(name)
        return JsonResponse(answers.Unloaded(name=name, state="UNAVAILABLE"))

    async def not_offered(self, _: Request) -> Response:
        raise Rejected(404, "this extension is not offered; GET /v2 lists those that are")

    def _model(self, request: Request) -> ServedModel:
        model = self._endpoint.model(request.path_params["model"], request.path_params.get("version"))
        request.scope[MODEL] = model.backend.spec.name
        return model


def _header_length(request: Request) -> int | None:
    """Return the bytes of the JSON part; 0 for a raw body, None where all is JSON."""
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    # A number with more digits is larger than any body, and need not be read.
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise malformed(f"Inference-Header-Content-Length must be a number of bytes, got {text[:40]!r}")
    return int(text)


def _parse_options(body: bytes) -> dict[str, object]:
    if not body.strip():
        return {}
    document = load_json(body, _MAX_OPTIONS_BYTES)
    if not isinstance(document, dict):
        raise malformed("the request must be a JSON object, or empty")
    return document
