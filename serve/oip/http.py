"""The protocol's HTTP routes: /v2 and everything below it."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, StrictBool, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from models.errors import NotReadyError
from serve.http.asgi import IN_FLIGHT, JsonResponse, deadline_of, whole_number
from serve.http.bodies import INLINE_BYTES, Held, load_json, read_body, validated
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.messages import answer_class, json_schema
from serve.oip.request import InferRequest, Parameters, Tensor, malformed, parse_request
from serve.oip.served import ServedModel

HEADER_LENGTH = "inference-header-content-length"
# Below this much, packing an answer is cheaper than handing it to a thread.
_PACK_INLINE_BYTES = 256 * 1024
# zlib's window bits of an answer's encodings, the better first: 15 is a zlib stream, which HTTP calls deflate.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
# An encoding that is accepted; a weight of 0 forbids it.
_ACCEPTED = re.compile(r"\s*(gzip|deflate)\s*(;\s*q=(1(\.0*)?|0\.0*[1-9]\d*)\s*)?")
# Of a request that brings no images: a name or two.
_MAX_OPTIONS_BYTES = 64 * 1024


class InferAnswer(TypedDict):
    """The outputs of an inference."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[Tensor]


class RepositoryOptions(BaseModel):
    """Of the index, whether to list only what is ready; parameters of a load are refused, others have no effect."""

    ready: StrictBool = False
    parameters: dict[str, Any] | None = None


class ModelReady(TypedDict):
    """A model is ready."""

    name: str
    ready: bool


class ModelState(TypedDict):
    """A model is loaded, or it is not any more and the requests that it has are finished."""

    name: str
    state: Literal["READY", "UNAVAILABLE"]


_HEADER_LENGTH_TEXT = (
    "Bytes of the JSON at the head of a body with binary tensors behind it; 0: the body is one image, or one tensor. Left "
    "out: the body is JSON alone."
)
_Repository = Callable[[str, RepositoryOptions], Awaitable[object]]
_ABOUT_INFER = About(
    "Infer (Open Inference Protocol v2)",
    {JSON: InferAnswer, BINARY: bytes},
    errors=(400, 404, 405, 413, 415, 422, 503, 504),
    text="Model M takes `image` BYTES [-1], one encoded image an element, and gives probabilities, label_ids, scores and "
    "labels; M-tensor takes and gives the model's own tensors. A bad image refuses the request, and is named by its index.",
    body={JSON: InferRequest, BINARY: bytes},
    headers={HEADER_LENGTH: Annotated[int, Field(ge=0, description=_HEADER_LENGTH_TEXT)]},
)


def oip_routes(endpoint: Endpoint) -> list[Route]:
    """Return the routes, in front of an endpoint. Every answer but a binary one is JSON; errors are raised."""
    on = _Routes(endpoint)
    model, repository = "/v2/models/{model}", "/v2/repository/models/{model}"
    return [
        # First what is asked for most: the router looks at one route after the other, 2 microseconds each.
        Operation("POST", model + "/infer", on.infer, _ABOUT_INFER),
        on.get("/v2", "The server, and the protocol's extensions that it has", "ServerMetadata"),
        on.get("/v2/health/live", "Whether the server runs", "ServerLive", needs_key=False),
        on.get("/v2/health/ready", "Whether the models are ready", "ServerReady", 503, needs_key=False),
        Operation("GET", "/v2/models", on.names, About("The models' names", {JSON: dict[str, list[str]]})),
        on.get("/v2/models/stats", "Counts of all models' requests here", "ModelStatistics"),
        *on.of_a_model(model),
        Operation("POST", model + "/versions/{version}/infer", on.infer, _ABOUT_INFER),
        *on.of_a_model(model + "/versions/{version}"),
        on.post("/v2/repository/index", "The models with their states", on.index, _of("RepositoryIndex", "models")),
        on.post(repository + "/load", "Load a model", on.load, ModelState, 404, 503),
        on.post(repository + "/unload", "Unload a model", on.unload, ModelState, 404, 503),
    ]


def _of(rpc: str, field: str | None) -> Any:  # noqa: ANN401 (a type)
    """Return the type of what an RPC answers, or of a field of it: over HTTP it is sent in its JSON form."""
    message = answer_class(rpc).DESCRIPTOR
    return Annotated[Any, WithJsonSchema(json_schema(message if field is None else message.fields_by_name[field]))]


class _Routes:
    """What answers each route, and the routes of a kind."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def get(
        self, path: str, summary: str, rpc: str, *errors: int, field: str | None = None, needs_key: bool = True
    ) -> Operation:
        """Build the route that answers what an RPC does, or a field of that."""

        async def give(request: Request) -> Response:
            name = request.path_params.get("model", "")
            request.scope[IN_FLIGHT].model = self._endpoint.label_of(name)
            answer = self._endpoint.tell(rpc, name, request.path_params.get("version", ""))
            if not answer.get("ready", True):
                raise NotReadyError("not ready: no model can answer yet")
            return JsonResponse(answer if field is None else answer[field])

        return Operation("GET", path, give, About(summary, {JSON: _of(rpc, field)}, errors, needs_key=needs_key))

    def post(self, path: str, summary: str, answer: _Repository, schema: Any, *errors: int) -> Operation:  # noqa: ANN401
        async def give(request: Request) -> Response:
            limits = self._endpoint.config
            most = min(_MAX_OPTIONS_BYTES, limits.max_request_bytes)
            options = await read_body(request, most, deadline_of(request, limits.deadline_s), _parse_options)
            return JsonResponse(await answer(request.path_params.get("model", ""), options))

        body = {JSON: RepositoryOptions}
        about = About(summary, {JSON: schema}, (400, 405, 413, 415, *errors), body=body, needs_body=False)
        return Operation("POST", path, give, about)

    def of_a_model(self, path: str) -> list[Operation]:
        about_ready = About("Whether a model is ready", {JSON: ModelReady}, (404, 503))
        return [
            self.get(path, "A model's tensors", "ModelMetadata", 404),
            Operation("GET", path + "/ready", self.model_ready, about_ready),
            self.get(path + "/config", "A model's configuration", "ModelConfig", 404, field="config"),
            self.get(path + "/stats", "Counts of a model's requests here", "ModelStatistics", 404),
        ]

    async def names(self, _: Request) -> Response:
        return JsonResponse({"models": self._endpoint.model_names()})

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        self._endpoint.check_ready(model)
        return JsonResponse(ModelReady(name=model.name, ready=True))

    async def index(self, _: str, options: RepositoryOptions) -> object:
        return self._endpoint.repository_index(only_ready=options.ready)

    async def load(self, name: str, options: RepositoryOptions) -> object:
        await self._endpoint.change("load", name, options.parameters)
        return ModelState(name=name, state="READY")

    async def unload(self, name: str, _: RepositoryOptions) -> object:
        # In the options is `unload_dependents` of Triton's clients: there are none.
        await self._endpoint.change("unload", name)
        return ModelState(name=name, state="UNAVAILABLE")

    async def infer(self, request: Request) -> Response:
        started = time.monotonic()
        deadline = deadline_of(request, self._endpoint.config.deadline_s)
        model = self._model(request)
        answer = await self._endpoint.infer(
            model, lambda: self._read(model, request, deadline), started=started, deadline=deadline
        )
        content, json_bytes = answer.encode()
        headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
        encoding = _encoding(request.headers.get("accept-encoding", ""))
        if encoding is not None:
            small = len(content) <= _PACK_INLINE_BYTES
            content = _packed(content, encoding) if small else await asyncio.to_thread(_packed, content, encoding)
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
        return Response(content, headers=headers, media_type=JSON if json_bytes is None else BINARY)

    async def _read(self, model: ServedModel, request: Request, deadline: float) -> InferRequest:
        length = _header_length(request)
        most = self._endpoint.config.max_request_bytes
        held: Held = request.scope[IN_FLIGHT].held

        def parse(body: bytes) -> InferRequest:
            if length == 0:
                # Binary, as the protocol says; who names JSON is somebody at a terminal, and gets it.
                binary = JSON not in request.headers.get("accept", "")
                tensor = model.raw_input(memoryview(body))
                return InferRequest(inputs=[tensor], parameters=Parameters(binary_data_output=binary))
            json_bytes = len(body) if length is None else min(length, len(body))
            # Images are cut out of the body; what JSON has is parsed first, and text is base64.
            held.set(2 * len(body) + json_bytes)
            return parse_request(body, length, self._endpoint.max_values)

        # Binary data are not parsed; only what is before them is.
        inline = INLINE_BYTES if length is None or length > INLINE_BYTES else most
        return await read_body(request, most, deadline, parse, inline)

    def _model(self, request: Request) -> ServedModel:
        model = self._endpoint.model(request.path_params["model"], request.path_params.get("version"))
        request.scope[IN_FLIGHT].model = model.backend.spec.name
        return model


def _header_length(request: Request) -> int | None:
    """Return the bytes of the JSON part; 0 for a raw body, None where all is JSON."""
    text = request.headers.get(HEADER_LENGTH)
    length = None if text is None else whole_number(text)
    if text is not None and length is None:
        raise malformed(f"Inference-Header-Content-Length must be a number of bytes, got {text[:40]!r}")
    return length


def _parse_options(body: bytes) -> RepositoryOptions:
    return validated(RepositoryOptions, load_json(body, _MAX_OPTIONS_BYTES) if body.strip() else {})


def _encoding(accepted: str) -> str | None:
    """Choose by the Accept-Encoding header how an answer is packed: gzip before deflate, or not at all."""
    found = {match[1] for match in map(_ACCEPTED.fullmatch, accepted.lower().split(",")) if match}
    return next((name for name in _WINDOW_BITS if name in found), None)


def _packed(content: bytes, encoding: str) -> bytes:
    """Pack an answer with the least work: JPEG does not shrink, and labels are short."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return packer.compress(content) + packer.flush()
