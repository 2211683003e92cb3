"""The protocol's HTTP routes: /v2 and everything below it."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, StrictBool, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from serve.http.asgi import IN_FLIGHT, JsonResponse, deadline_of, whole_number
from serve.http.bodies import INLINE_BYTES, Held, load_json, read_body, validated
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.oip.codec import InferRequest, Parameters, Tensor, malformed, parse_request
from serve.oip.endpoint import MAX_OPTIONS_BYTES, OPEN, Endpoint
from serve.oip.grpc.messages import answer_class, json_schema
from serve.oip.served import ServedModel

HEADER_LENGTH = "inference-header-content-length"
_PACK_INLINE_BYTES = 256 * 1024  # below this much, packing an answer is cheaper than handing it to a thread
# zlib's window bits of an answer's encodings, the better first: 15 is a zlib stream, which HTTP calls deflate.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
# An encoding that is accepted; a weight of 0 forbids it.
_ACCEPTED = re.compile(r"\s*(gzip|deflate)\s*(;\s*q=(1(\.0*)?|0\.0*[1-9]\d*)\s*)?")


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
_ABOUT_INFER = About(
    "Infer (Open Inference Protocol v2)",
    {JSON: InferAnswer, BINARY: bytes},
    errors=(400, 404, 405, 413, 415, 422, 503, 504),
    text="Model M takes `image` BYTES [-1], one encoded image an element, and gives probabilities, label_ids, scores and "
    "labels; M-tensor takes and gives the model's own tensors. A bad image refuses the request, and is named by its index.",
    body={JSON: InferRequest, BINARY: bytes},
    headers={HEADER_LENGTH: Annotated[int, Field(ge=0, description=_HEADER_LENGTH_TEXT)]},
)
# Of what these RPCs answer, HTTP has one field alone.
_FIELDS = {"ModelConfig": "config", "RepositoryIndex": "models"}


# Over HTTP these answer more than their messages have.
_TYPES = {"ModelReady": ModelReady, "RepositoryModelLoad": ModelState, "RepositoryModelUnload": ModelState}


def oip_routes(endpoint: Endpoint) -> list[Route]:
    """Return the routes, in front of an endpoint. Every answer but a binary one is JSON; errors are raised."""
    on = _Routes(endpoint)
    model, repository = "/v2/models/{model}", "/v2/repository/models/{model}"
    return [
        # First what is asked for most: the router looks at one route after the other, 2 microseconds each.
        Operation("POST", model + "/infer", on.infer, _ABOUT_INFER),
        on.ask("GET", "/v2", "ServerMetadata", "The server, and the protocol's extensions that it has"),
        on.ask("GET", "/v2/health/live", "ServerLive", "Whether the server runs"),
        on.ask("GET", "/v2/health/ready", "ServerReady", "Whether the models are ready", 503),
        Operation("GET", "/v2/models", on.names, About("The models' names", {JSON: dict[str, list[str]]})),
        on.ask("GET", "/v2/models/stats", "ModelStatistics", "Counts of all models' requests here"),
        *on.of_a_model(model),
        Operation("POST", model + "/versions/{version}/infer", on.infer, _ABOUT_INFER),
        *on.of_a_model(model + "/versions/{version}"),
        on.ask("POST", "/v2/repository/index", "RepositoryIndex", "The models with their states"),
        on.ask("POST", repository + "/load", "RepositoryModelLoad", "Load a model", 404, 503),
        on.ask("POST", repository + "/unload", "RepositoryModelUnload", "Unload a model", 404, 503),
    ]


class _Routes:
    """What answers each route."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def ask(self, method: str, path: str, rpc: str, summary: str, *errors: int) -> Operation:
        """Build the route that answers what an RPC does, or a field of that, in its JSON form."""
        field, has_body = _FIELDS.get(rpc), method == "POST"

        def parse(body: bytes) -> RepositoryOptions:
            return validated(RepositoryOptions, load_json(body, MAX_OPTIONS_BYTES) if body.strip() else {})

        async def give(request: Request) -> Response:
            name, version = request.path_params.get("model", ""), request.path_params.get("version", "")
            options = None
            if has_body:
                limits = self._endpoint.config
                most = min(MAX_OPTIONS_BYTES, limits.max_request_bytes)
                options = await read_body(request, most, deadline_of(request, limits.deadline_s), parse)
            else:
                request.scope[IN_FLIGHT].model = self._endpoint.label_of(name)
            answer = await self._endpoint.answer(rpc, name, version, options)
            return JsonResponse(answer if field is None else answer[field])

        message = answer_class(rpc).DESCRIPTOR
        schema = json_schema(message if field is None else message.fields_by_name[field])
        kind = _TYPES.get(rpc, Annotated[Any, WithJsonSchema(schema)])
        about = About(summary, {JSON: kind}, errors, needs_body=False, needs_key=rpc not in OPEN)
        if has_body:
            about = replace(about, errors=(400, 405, 413, 415, *errors), body={JSON: RepositoryOptions})
        return Operation(method, path, give, about)

    def of_a_model(self, path: str) -> list[Operation]:
        """Build the routes that tell of a model, or of a version of it."""
        return [
            self.ask("GET", path, "ModelMetadata", "A model's tensors", 404),
            self.ask("GET", path + "/ready", "ModelReady", "Whether a model is ready", 404, 503),
            self.ask("GET", path + "/config", "ModelConfig", "A model's configuration", 404),
            self.ask("GET", path + "/stats", "ModelStatistics", "Counts of a model's requests here", 404),
        ]

    async def names(self, _: Request) -> Response:
        return JsonResponse({"models": list(self._endpoint.served)})

    async def infer(self, request: Request) -> Response:
        started = time.monotonic()
        deadline = deadline_of(request, self._endpoint.config.deadline_s)
        model = self._endpoint.model(request.path_params["model"], request.path_params.get("version"))
        request.scope[IN_FLIGHT].model = model.backend.spec.name
        answer = await model.infer(lambda: self._read(model, request, deadline), started=started, deadline=deadline)
        content, json_bytes = answer.encode()
        headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
        accepted = request.headers.get("accept-encoding", "").lower().split(",")
        found = {match[1] for match in map(_ACCEPTED.fullmatch, accepted) if match}
        if encoding := next((name for name in _WINDOW_BITS if name in found), None):
            # With the least work: JPEG does not shrink, and labels are short.
            pack = partial(zlib.compress, content, 1, _WINDOW_BITS[encoding])
            content = pack() if len(content) <= _PACK_INLINE_BYTES else await asyncio.to_thread(pack)
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
        return Response(content, headers=headers, media_type=JSON if json_bytes is None else BINARY)

    async def _read(self, model: ServedModel, request: Request, deadline: float) -> InferRequest:
        # Bytes of the JSON part: 0 for a raw body, None where all is JSON.
        text = request.headers.get(HEADER_LENGTH)
        length = None if text is None else whole_number(text)
        if text is not None and length is None:
            raise malformed(f"Inference-Header-Content-Length must be a number of bytes, got {text[:40]!r}")
        held: Held = request.scope[IN_FLIGHT].held

        def parse(body: bytes) -> InferRequest:
            if length == 0:
                # Binary, as the protocol says; who names JSON is somebody at a terminal, and gets it.
                binary = JSON not in request.headers.get("accept", "")
                return InferRequest(inputs=[model.raw_input(body)], parameters=Parameters(binary_data_output=binary))
            json_bytes = len(body) if length is None else min(length, len(body))
            # Images are cut out of the body; what JSON has is parsed first, and text is base64.
            held.set(2 * len(body) + json_bytes)
            return parse_request(body, length, self._endpoint.max_values)

        most = self._endpoint.config.max_request_bytes
        # Binary data are not parsed; only what is before them is.
        inline = INLINE_BYTES if length is None or length > INLINE_BYTES else most
        return await read_body(request, most, deadline, parse, inline)
