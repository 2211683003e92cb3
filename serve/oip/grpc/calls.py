"""Around the RPCs: the key, the budget of bodies, bytes to messages, errors to statuses, the count and the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serve import tracing
from serve.http.access_log import AccessLog
from serve.http.asgi import Rejected, as_rejected
from serve.http.bodies import BodyMemory, Held
from serve.http.keys import ApiKeys
from serve.metrics.replica_metrics import ServeMetrics
from serve.model.observed import set_request_id
from serve.oip.endpoint import Endpoint
from serve.oip.faults import GRPC_CODES, malformed
from serve.oip.grpc.call import Call, Context, Message
from serve.oip.grpc.handlers import Handlers
from serve.oip.grpc.messages import answer_class, request_class
from serve.oip.grpc.service import PATHS, STREAM, Metadata, Refusal
from serve.oip.grpc.wire import check_size

logger = logging.getLogger(__name__)

# Answered without a key, as over HTTP: who watches over the endpoint has none.
OPEN = frozenset({"ServerLive", "ServerReady", "Check", "Watch"})
INFERS = frozenset({"ModelInfer", STREAM})
# gRPC refuses headers of more than 8 kB in all.
_MAX_DETAILS = 2000
# Of every message but an inference request: a name or two.
MAX_OPTIONS_BYTES = 64 * 1024
# What a ModelInferRequest has at most: each image is a field, or one of the raw contents; names, parameters and outputs.
FIELDS_AN_IMAGE = 1
FIELDS_BESIDE = 1000
# Between two messages of a Watch.
WATCH_S = 5.0


class GrpcCalls:
    """The service, in front of an endpoint.

    Args:
        endpoint: What answers.
        memory: The budget of all bodies; see `serve.http.bodies`.
        keys: Who may come in; None for everyone.
        metrics: Counts calls.
        access_log: Gets a line per call.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        memory: BodyMemory,
        *,
        keys: ApiKeys | None = None,
        metrics: ServeMetrics | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._memory = memory
        self._keys = keys
        self._metrics = metrics
        self._access_log = access_log
        self._handlers = Handlers(endpoint)

    def look(self, rpc: str, metadata: Metadata) -> Refusal | None:
        """Return why a call is refused before its message is received; see `service.look`."""
        try:
            self._check_key(rpc, metadata)
            if rpc in INFERS:
                self._endpoint.admit(1)
        except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
            rejected = self._rejected(rpc, err)
            if self._metrics is not None:
                self._metrics.request(f"grpc/{rpc}", rejected.status, 0.0, rejected.kind)
            return _refusal(rejected)
        return None

    async def answer(self, rpc: str, request: bytes, context: Context) -> Message:
        """Answer one call.

        Args:
            rpc: One of `service.RPCS`, or Check.
            request: The message as sent.
            context: Gets the status where the call fails; the message is then an empty one.
        """
        outcome = await self._outcome(Call(rpc, request, context))
        if not isinstance(outcome, Rejected):
            return outcome
        _refuse(context, outcome)
        empty: Message = answer_class(rpc)()
        return empty

    async def stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[Message]:
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
                    tasks.add(task := asyncio.create_task(self._streamed(Call(STREAM, request, context))))
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

    async def watch(self, request: bytes, context: Context) -> AsyncGenerator[Message]:
        """Answer a Watch of the health protocol: the status now, and for as long as the caller listens."""
        try:
            message = request_class("Watch").FromString(request[:MAX_OPTIONS_BYTES])
        except DecodeError:
            _refuse(context, malformed("the message is not a HealthCheckRequest of the protocol"))
            return
        while True:
            try:
                status = "SERVING" if self._handlers.is_serving(message.service) else "NOT_SERVING"
            except Rejected:
                status = "SERVICE_UNKNOWN"  # and not an error: it may come
            yield answer_class("Watch")(status=status)
            # Also where nothing has changed: HAProxy would take a connection that says nothing for a dead one.
            await asyncio.sleep(WATCH_S)

    async def _streamed(self, call: Call) -> Message:
        outcome = await self._outcome(call)
        if isinstance(outcome, Rejected):
            refused: Message = answer_class(STREAM)(error_message=_details(outcome), infer_response={"id": call.id})
            return refused
        return outcome

    async def _outcome(self, call: Call) -> Message | Rejected:
        """Answer one message, count it, and write its line in the log."""
        with tracing.grpc_call(PATHS[call.rpc], call.context.invocation_metadata()):
            return await self._noted(call)

    async def _noted(self, call: Call) -> Message | Rejected:
        began = time.perf_counter()
        set_request_id(dict(call.context.invocation_metadata()).get("x-request-id", ""))
        status = 499  # where the task is cancelled: the client has hung up
        kind: str | None = "gone"
        if self._metrics is not None:
            self._metrics.in_flight.inc()
        held = Held(self._memory)
        outcome: Message | Rejected
        try:
            outcome = await self._answer(call, held)
        except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
            outcome = self._rejected(call.rpc, err)
            status, kind = outcome.status, outcome.kind
        else:
            status, kind = 200, None
        finally:
            held.close()
            seconds = time.perf_counter() - began
            code = {200: "OK", 499: "CANCELLED"}.get(status) or GRPC_CODES.get(status, "INTERNAL")
            tracing.answered(status, kind, {"rpc.response.status_code": code})
            if self._metrics is not None:
                self._metrics.in_flight.dec()
                self._metrics.request(f"grpc/{call.rpc}", status, seconds, kind, call.model)
            if self._access_log is not None:
                self._access_log.add(**call.line(status, seconds, kind))
        return outcome

    @staticmethod
    def _rejected(rpc: str, err: Exception) -> Rejected:
        rejected = as_rejected(err)
        if rejected is None:
            # Its text may name files of this machine: it goes to the log.
            logger.error("call failed rpc=%s", rpc, exc_info=err)
            rejected = Rejected(500, "the server failed on this call; its log says why", kind="internal")
        # It has the frames that it passed through, and these have it: a message would wait for the collector.
        err.__traceback__ = None
        return rejected

    def _check_key(self, rpc: str, metadata: Metadata) -> None:
        if self._keys is not None and rpc not in OPEN:
            sent = dict(metadata).get("authorization")
            self._keys.check(None if sent is None else sent.encode())

    async def _answer(self, call: Call, held: Held) -> Message:
        rpc, request = call.rpc, call.request
        # Once more where a proxy of Serve's, which knows no keys, has received the message.
        self._check_key(rpc, call.context.invocation_metadata())
        limits = self._endpoint.limits
        limit = limits.max_request_bytes if rpc in INFERS else min(MAX_OPTIONS_BYTES, limits.max_request_bytes)
        if len(request) > limit:
            raise Rejected(413, f"the message may have at most {limit:,} bytes, got {len(request):,}")
        # As it came, parsed, and the images or numbers that are taken out of it.
        held.set(3 * len(request))
        if rpc in INFERS:
            most_fields = FIELDS_AN_IMAGE * limits.max_images + FIELDS_BESIDE
            check_size(request, most_fields=most_fields, most_values=limits.max_values)
        kind = request_class(rpc)
        try:
            message = kind.FromString(request)
        except DecodeError:
            raise malformed(f"the message is not a {kind.DESCRIPTOR.name} of the protocol") from None
        call.id = getattr(message, "id", "")
        call.model = self._endpoint.label_of(getattr(message, "model_name", "") or getattr(message, "name", ""))
        answer: Message = await self._handlers.by_name[rpc](message)
        return answer


def _details(rejected: Rejected) -> str:
    # A lone surrogate has no UTF-8 form, and gRPC wants one.
    return str(rejected)[:_MAX_DETAILS].encode("utf-8", "replace").decode()


def _refusal(rejected: Rejected) -> Refusal:
    # gRPC's own word for Retry-After; its clients wait as long where retries are on.
    metadata = tuple(
        ("grpc-retry-pushback-ms", str(int(value) * 1000)) for name, value in rejected.headers if name == b"retry-after"
    )
    return grpc.StatusCode[GRPC_CODES.get(rejected.status, "INTERNAL")], _details(rejected), metadata


def _refuse(context: Context, rejected: Rejected) -> None:
    code, details, metadata = _refusal(rejected)
    context.set_code(code)
    context.set_details(details)
    if metadata:
        context.set_trailing_metadata(list(metadata))
