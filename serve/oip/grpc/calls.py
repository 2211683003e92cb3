"""Around the RPCs: the key, the budget of bodies, bytes to messages, errors to statuses, the count and the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext

from models.errors import UnknownModelError
from serve import tracing
from serve.http.application import Extras
from serve.http.asgi import Rejected, as_rejected
from serve.http.bodies import BodyMemory, Held
from serve.http.trace_context import trace_field
from serve.model.outcomes import set_request_id
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.handlers import answer_to, health_of
from serve.oip.grpc.messages import answer_class, request_class
from serve.oip.grpc.service import PATHS, STREAM, Metadata, Refusal
from serve.oip.grpc.wire import check_size
from serve.oip.request import malformed

logger = logging.getLogger(__name__)

# Answered without a key, as over HTTP: who watches over the endpoint has none.
OPEN = frozenset({"ServerLive", "ServerReady", "Check", "Watch"})
INFERS = frozenset({"ModelInfer", STREAM})
# gRPC refuses headers of more than 8 kB in all.
_MAX_DETAILS = 2000
# Of every message but an inference request: a name or two.
MAX_OPTIONS_BYTES = 64 * 1024
# What a ModelInferRequest has beside its images, each of which is a field: names, parameters and outputs.
FIELDS_BESIDE = 1000
# Between two messages of a Watch.
WATCH_S = 5.0
# From HTTP's status to gRPC's. Over the size limit is RESOURCE_EXHAUSTED, as gRPC itself says of a message over its own; a
# full queue is UNAVAILABLE, which clients may retry.
_CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(slots=True)
class _Call:
    """One message of a call.

    Attributes:
        rpc: One of `service.PATHS`.
        request: As sent.
        context: Of the call.
        id: Of the request, once it is parsed.
        model: That it is for, once it is parsed; None for none, or for one that is not there.
    """

    rpc: str
    request: bytes
    context: ServicerContext
    id: str = ""
    model: str | None = None

    def line(self, status: int, seconds: float, kind: str | None) -> dict[str, Any]:
        """Return its line in the access log."""
        metadata = self.context.invocation_metadata()
        sent = dict(metadata)
        # `ipv4:127.0.0.1:50000`. A HAProxy of this machine says whose call it passes on; others might lie.
        client = unquote(self.context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")
        if client == "::1" or client.removeprefix("::ffff:").startswith("127."):
            client = sent.get("x-forwarded-for") or client
        return {
            "client": client,
            "method": "gRPC",
            "path": PATHS[self.rpc],
            "status": status,
            "ms": round(1000 * seconds, 2),
            "bytes": len(self.request),
            "request_id": sent.get("x-request-id", ""),
            **trace_field([value for name, value in metadata if name == "traceparent"]),
            **({"error": kind} if kind else {}),
        }


class GrpcCalls:
    """The services, in front of an endpoint.

    Contexts are Ray Serve's or gRPC's own: both have the methods that are used.

    Args:
        endpoint: What answers.
        extras: Who may come in, what calls are counted and written by, and the budget of bodies.
    """

    def __init__(self, endpoint: Endpoint, extras: Extras) -> None:
        self._endpoint = endpoint
        self._keys, self._metrics, self._access_log = extras.keys, extras.metrics, extras.access_log
        self._memory = extras.memory or BodyMemory(endpoint.config.max_body_memory)

    def look(self, rpc: str, metadata: Metadata) -> Refusal | None:
        """Return why a call is refused before its message is received; see `service.look`."""
        try:
            self._check_key(rpc, metadata)
            if rpc in INFERS:
                self._endpoint.models.admit(1)
        except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
            rejected = _rejected(rpc, err)
            if self._metrics is not None:
                self._metrics.request(f"grpc/{rpc}", rejected.status, 0.0, rejected.kind)
            return _refusal(rejected)
        return None

    async def answer(self, rpc: str, request: bytes, context: ServicerContext) -> Message:
        """Answer one call.

        Args:
            rpc: One of `service.RPCS`, or Check.
            request: The message as sent.
            context: Gets the status where the call fails; the message is then an empty one.
        """
        outcome = await self._outcome(_Call(rpc, request, context))
        if not isinstance(outcome, Rejected):
            return outcome
        _refuse(context, outcome)
        return answer_class(rpc)()

    async def stream(self, requests: AsyncIterator[bytes], context: ServicerContext) -> AsyncGenerator[Message]:
        """Answer the requests of a ModelStreamInfer: several at once, each with one message, in the order they came.

        Args:
            requests: The messages as sent. How many are taken before they are answered is bounded by whoever gives them.
            context: Gets the status where there is no key; what is wrong with a request is told in its answer.
        """
        try:
            self._check_key(STREAM, context.invocation_metadata())
        except Rejected as err:
            _refuse(context, err)
            return
        begun: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue()
        # Those that nobody waits for are ended with the stream.
        tasks: set[asyncio.Task[Any]] = set()

        async def begin() -> None:
            try:
                async for request in requests:
                    tasks.add(task := asyncio.create_task(self._streamed(_Call(STREAM, request, context))))
                    task.add_done_callback(tasks.discard)
                    begun.put_nowait(task)
            finally:
                begun.put_nowait(None)

        tasks.add(reader := asyncio.create_task(begin()))
        try:
            while (task := await begun.get()) is not None:
                yield await task
            await reader
        finally:
            for each in tasks:
                each.cancel()

    async def watch(self, request: bytes, context: ServicerContext) -> AsyncGenerator[Message]:
        """Answer a Watch of the health protocol: the status now, and for as long as the caller listens."""
        try:
            message = request_class("Watch").FromString(request[:MAX_OPTIONS_BYTES])
        except DecodeError:
            _refuse(context, malformed("the message is not a HealthCheckRequest of the protocol"))
            return
        while True:
            try:
                status = health_of(self._endpoint, message.service)
            except UnknownModelError:
                status = "SERVICE_UNKNOWN"  # and not an error: it may come
            yield answer_class("Watch")(status=status)
            # Also where nothing has changed: HAProxy would take a connection that says nothing for a dead one.
            await asyncio.sleep(WATCH_S)

    async def _streamed(self, call: _Call) -> Message:
        outcome = await self._outcome(call)
        if isinstance(outcome, Rejected):
            return answer_class(STREAM)(error_message=_details(outcome), infer_response={"id": call.id})
        return outcome

    async def _outcome(self, call: _Call) -> Message | Rejected:
        """Answer one message, count it, and write its line in the log."""
        metadata = call.context.invocation_metadata()
        with tracing.grpc_call(PATHS[call.rpc], metadata):
            began = time.perf_counter()
            set_request_id(dict(metadata).get("x-request-id", ""))
            status = 499  # where the task is cancelled: the client has hung up
            kind: str | None = "gone"
            if self._metrics is not None:
                self._metrics.in_flight.inc()
            held = Held(self._memory)
            try:
                outcome = await self._answer(call, held)
                status, kind = 200, None
            except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
                outcome = _rejected(call.rpc, err)
                status, kind = outcome.status, outcome.kind
            finally:
                held.close()
                seconds = time.perf_counter() - began
                tracing.answered(status, kind, {"rpc.response.status_code": _code(status).name})
                if self._metrics is not None:
                    self._metrics.in_flight.dec()
                    self._metrics.request(f"grpc/{call.rpc}", status, seconds, kind, call.model)
                if self._access_log is not None:
                    self._access_log.add(**call.line(status, seconds, kind))
            return outcome

    def _check_key(self, rpc: str, metadata: Metadata) -> None:
        if self._keys is not None and rpc not in OPEN:
            sent = dict(metadata).get("authorization")
            self._keys.check(None if sent is None else sent.encode())

    async def _answer(self, call: _Call, held: Held) -> Message:
        rpc, request, endpoint = call.rpc, call.request, self._endpoint
        # Once more where a proxy of Serve's, which knows no keys, has received the message.
        self._check_key(rpc, call.context.invocation_metadata())
        limits = endpoint.config
        limit = limits.max_request_bytes if rpc in INFERS else min(MAX_OPTIONS_BYTES, limits.max_request_bytes)
        if len(request) > limit:
            raise Rejected(413, f"the message may have at most {limit:,} bytes, got {len(request):,}")
        # As it came, parsed, and the images or numbers that are taken out of it.
        held.set(3 * len(request))
        if rpc in INFERS:
            check_size(request, most_fields=limits.max_images + FIELDS_BESIDE, most_values=endpoint.max_values)
        kind = request_class(rpc)
        try:
            message = kind.FromString(request)
        except DecodeError:
            raise malformed(f"the message is not a {kind.DESCRIPTOR.name} of the protocol") from None
        call.id = getattr(message, "id", "")
        call.model = endpoint.label_of(getattr(message, "model_name", "") or getattr(message, "name", ""))
        return await answer_to(rpc, message, endpoint)


def _rejected(rpc: str, err: Exception) -> Rejected:
    rejected = as_rejected(err)
    if rejected is None:
        # Its text may name files of this machine: it goes to the log.
        logger.error("call failed rpc=%s", rpc, exc_info=err)
        rejected = Rejected(500, "the server failed on this call; its log says why", kind="internal")
    # It has the frames that it passed through, and these have it: a message would wait for the collector.
    err.__traceback__ = None
    return rejected


def _code(status: int) -> grpc.StatusCode:
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


def _details(rejected: Rejected) -> str:
    # A lone surrogate has no UTF-8 form, and gRPC wants one.
    return str(rejected)[:_MAX_DETAILS].encode("utf-8", "replace").decode()


def _refusal(rejected: Rejected) -> Refusal:
    # gRPC's own word for Retry-After; its clients wait as long where retries are on.
    metadata = tuple(
        ("grpc-retry-pushback-ms", str(int(value) * 1000)) for name, value in rejected.headers if name == b"retry-after"
    )
    return _code(rejected.status), _details(rejected), metadata


def _refuse(context: ServicerContext, rejected: Rejected) -> None:
    code, details, metadata = _refusal(rejected)
    context.set_code(code)
    context.set_details(details)
    if metadata:
        context.set_trailing_metadata(list(metadata))
