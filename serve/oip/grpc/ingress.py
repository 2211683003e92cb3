"""The gRPC side of a replica, mixed into `serve.replica`: checks, counts and logs each message, and answers it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext
from starlette.datastructures import Headers

from models.errors import NotReadyError, UnknownModelError
from serve.config import ServeConfig
from serve.http.asgi import Rejected, rejection
from serve.http.bodies import Held
from serve.http.in_flight import Extras, InFlight, observed
from serve.model.models import Models
from serve.oip.codec import InferRequest, InferResponse, malformed
from serve.oip.endpoint import MAX_OPTIONS_BYTES, OPEN, Endpoint
from serve.oip.grpc import service
from serve.oip.grpc.infer import answer_fields, check_size, read_request
from serve.oip.grpc.messages import answer_class, request_class
from serve.oip.grpc.service import PATHS, STREAM, WATCH, Metadata, Refusal

_INFERS = frozenset({"ModelInfer", STREAM})
_MAX_DETAILS = 2000  # gRPC refuses headers of more than 8 kB in all
# Fields of a ModelInferRequest beside its images, each of which is one: names, parameters and outputs.
_FIELDS_BESIDE = 1000
WATCH_S = 5.0  # between two messages of a Watch
# From HTTP's status to gRPC's; every other is INTERNAL. Over the size limit is RESOURCE_EXHAUSTED, as gRPC itself says of a
# message over its own; a full queue is UNAVAILABLE, which clients may retry.
_CODES = {
    200: grpc.StatusCode.OK,
    **dict.fromkeys((400, 415, 422), grpc.StatusCode.INVALID_ARGUMENT),
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class _Call(InFlight):
    """One message of a call."""

    def span(self) -> tuple[str, dict[str, str]]:
        """Return the name and the attributes of its span."""
        method = self.path.removeprefix("/")
        return method, {"rpc.system.name": "grpc", "rpc.method": method}

    def code(self) -> dict[str, int | str]:
        """Return the status as an attribute of its span."""
        return {"rpc.response.status_code": _CODES.get(self.status, grpc.StatusCode.INTERNAL).name}


class Methods:
    """The methods that Ray Serve looks for on an ingress deployment: a mixin for a class with the attributes below.

    Contexts are Ray Serve's or gRPC's own: both have the methods that are used.
    """

    models: Models
    config: ServeConfig
    extras: Extras  # the same as HTTP's

    @cached_property
    def _endpoint(self) -> Endpoint:
        return Endpoint(self.models, self.config, self.extras.control)

    def start_grpc(self) -> None:
        """Look at the head of each call of this process from now on, before its message is received."""
        service.look = self._look

    async def ModelStreamInfer(  # noqa: N802 (the RPC's name)
        self, request: AsyncIterator[bytes], grpc_context: ServicerContext
    ) -> AsyncGenerator[Message]:
        """Answer the requests of a stream: several at once, each with one message, in the order they came.

        `service` bounds how many messages are taken before they are answered. A request that fails says so in its answer.
        """
        try:
            self._check_key(STREAM, _headers(grpc_context.invocation_metadata()))
        except Rejected as err:
            _refuse(grpc_context, err)
            return
        begun: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue()

        async def begin() -> None:
            try:
                async for each in request:
                    begun.put_nowait(asyncio.create_task(self._answer(STREAM, each, grpc_context)))
            finally:
                begun.put_nowait(None)

        reader = asyncio.create_task(begin())
        try:
            while (task := await begun.get()) is not None:
                yield await task
            await reader
        finally:
            # Nobody waits for those that are left.
            reader.cancel()
            while not begun.empty():
                if (task := begun.get_nowait()) is not None:
                    task.cancel()

    async def Watch(self, request: bytes, grpc_context: ServicerContext) -> AsyncGenerator[Message]:  # noqa: N802
        """Tell whether a service or a model answers, and again for as long as the caller listens."""
        try:
            asked = _parsed(WATCH, request[:MAX_OPTIONS_BYTES]).service
        except Rejected as err:
            _refuse(grpc_context, err)
            return
        while True:
            try:
                status = self._health(asked)
            except UnknownModelError:
                status = "SERVICE_UNKNOWN"  # and not an error: it may come
            yield answer_class(WATCH)(status=status)
            # Also where nothing has changed: HAProxy closes an idle connection.
            await asyncio.sleep(WATCH_S)

    def _health(self, asked: str) -> str:
        """Tell whether everything (""), one of the services here, or a model answers, as gRPC's health protocol asks."""
        is_service = not asked or any(path.startswith(f"/{asked}/") for path in PATHS.values())
        named = self.models if is_service else self._endpoint.model(asked).backend
        return "SERVING" if named.is_ready else "NOT_SERVING"

    def _look(self, rpc: str, metadata: Metadata) -> Refusal | None:
        """Return why a call is refused before its message is received; see `service.look`."""
        try:
            self._check_key(rpc, _headers(metadata))
            if rpc in _INFERS:
                self.models.admit(1)
        except Exception as err:  # noqa: BLE001 (the edge: `rejection` logs what is ours)
            return _refusal(rejection(err, PATHS[rpc]))
        return None

    def _check_key(self, rpc: str, headers: Headers) -> None:
        if self.extras.keys is not None and rpc not in OPEN:
            self.extras.keys.check(headers.get("authorization"))

    async def _answer(self, rpc: str, content: bytes, context: ServicerContext) -> Message:
        """Answer one message. Where that fails, the context gets the status, or a stream's answer the reason."""
        headers, path, message = _headers(context.invocation_metadata()), PATHS[rpc], None
        client, held = _client(context, headers), Held(self.extras.memory)
        call = _Call("gRPC", path, f"grpc/{rpc}", headers, client, len(content), held)
        with observed(self.extras, call):
            try:
                # Again: Serve's own proxy, which may have received the message, knows no keys.
                self._check_key(rpc, headers)
                message = self._message(rpc, content, held)
                name = getattr(message, "model_name", "") or getattr(message, "name", "")
                call.model = self._endpoint.label_of(name)
                answer = await self._answer_to(rpc, name, message)
                call.status, call.kind = 200, None
            except Exception as err:  # noqa: BLE001 (the edge: `rejection` logs what is ours)
                rejected = rejection(err, path)
                call.status, call.kind = rejected.status, rejected.kind
                answer = answer_class(rpc)()
                if rpc == STREAM:
                    answer.error_message = _refusal(rejected)[1]
                    answer.infer_response.id = getattr(message, "id", "")
                else:
                    _refuse(context, rejected)
        return answer

    def _message(self, rpc: str, content: bytes, held: Held) -> Any:  # noqa: ANN401 (protobuf makes these classes)
        """Check the size of a message, and parse it."""
        limits = self.config
        limit = limits.max_request_bytes if rpc in _INFERS else min(MAX_OPTIONS_BYTES, limits.max_request_bytes)
        if len(content) > limit:
            raise Rejected(413, f"the message may have at most {limit:,} bytes, got {len(content):,}")
        # The message as sent, as parsed, and the images or numbers copied from it.
        held.set(3 * len(content))
        if rpc in _INFERS:
            check_size(content, most_fields=limits.max_images + _FIELDS_BESIDE, most_values=self._endpoint.max_values)
        return _parsed(rpc, content)

    async def _answer_to(self, rpc: str, name: str, message: Any) -> Message:  # noqa: ANN401
        kind = answer_class(rpc)
        if rpc == "Check":
            return kind(status=self._health(message.service))
        if rpc in _INFERS:
            fields = answer_fields(await self._infer(name, message))
            # Each request of a stream has one answer: the first is also the last.
            final = {"triton_final_response": {"bool_param": True}}
            return kind(infer_response={**fields, "parameters": final}) if rpc == STREAM else kind(**fields)
        try:
            told = await self._endpoint.answer(rpc, name, getattr(message, "version", ""), message)
        except (NotReadyError, UnknownModelError):
            if rpc not in ("ServerReady", "ModelReady"):
                raise
            return kind()  # not ready, which is no error: clients poll until it is
        known = kind.DESCRIPTOR.fields_by_name
        return kind(**{field: value for field, value in told.items() if field in known})

    async def _infer(self, name: str, message: Any) -> InferResponse:  # noqa: ANN401
        started = service.arrived.get(None) or time.monotonic()

        async def read() -> InferRequest:
            return read_request(message)

        model = self._endpoint.model(name, message.model_version)
        return await model.infer(read, started=started, deadline=started + self.config.deadline_s)


def _method(rpc: str) -> Callable[[Methods, bytes, ServicerContext], Awaitable[Message]]:
    async def answer(self: Methods, request: bytes, grpc_context: ServicerContext) -> Message:
        return await self._answer(rpc, request, grpc_context)

    return answer


for _rpc in PATHS:
    if not hasattr(Methods, _rpc):
        setattr(Methods, _rpc, _method(_rpc))


def _headers(metadata: Metadata) -> Headers:
    raw = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata]
    return Headers(raw=raw)


def _client(context: ServicerContext, headers: Headers) -> str:
    # `ipv4:127.0.0.1:50000`. Only this machine's HAProxy is trusted to name the client.
    client = unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")
    is_local = client == "::1" or client.removeprefix("::ffff:").startswith("127.")
    return headers.get("x-forwarded-for", client) if is_local else client


def _parsed(rpc: str, content: bytes) -> Any:  # noqa: ANN401 (protobuf makes these classes)
    kind = request_class(rpc)
    try:
        return kind.FromString(content)
    except DecodeError:
        raise malformed(f"the message is not a {kind.DESCRIPTOR.name} of the protocol") from None


def _refusal(rejected: Rejected) -> Refusal:
    # A lone surrogate has no UTF-8 form, and gRPC wants one.
    details = str(rejected)[:_MAX_DETAILS].encode("utf-8", "replace").decode()
    # gRPC's form of Retry-After, for clients with retries on.
    metadata = tuple(
        ("grpc-retry-pushback-ms", str(int(value) * 1000)) for name, value in rejected.headers if name == b"retry-after"
    )
    return _CODES.get(rejected.status, grpc.StatusCode.INTERNAL), details, metadata


def _refuse(context: ServicerContext, rejected: Rejected) -> None:
    code, details, metadata = _refusal(rejected)
    context.set_code(code)
    context.set_details(details)
    if metadata:
        context.set_trailing_metadata(list(metadata))
