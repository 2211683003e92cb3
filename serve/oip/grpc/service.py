"""Which RPCs there are, for Ray Serve's gRPC proxies and replicas. Light: a proxy imports it, and no model.

A call's head is looked at before its message is received, which gRPC's own handlers of one message do not let one do:
they are called when it is whole. On the wire such a call is the same as a stream of one message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc.aio import ServicerContext

from serve.oip.grpc.messages import METHODS

STREAM = "ModelStreamInfer"
WATCH = "Watch"
# Each by its name alone: that is all that Ray Serve goes by.
PATHS = {rpc: f"/{method.containing_service.full_name}/{rpc}" for rpc, method in METHODS.items()}

# Messages that are received at once. How long one is shows only when it is there, packed ones at their full length: so
# this bounds what calls take before they are counted. A small message is there already, and takes its turn in no time.
RECEIVED_AT_ONCE = 2
RECEIVE_S = 5.0  # for a message's turn, and to receive it
# Calls that are open at once. Each stream may be receiving a message that is not counted yet, and which one is, nothing
# tells; who watches has no key, and holds a connection.
AT_ONCE = {STREAM: 4, WATCH: 8}
# Requests of a stream that were received and are not answered; the next is left with the client until one is.
STREAM_IN_FLIGHT = 8
# Of a stream that asks nothing. HAProxy would close it after 60 s, without a word.
STREAM_IDLE_S = 50.0

Metadata = Sequence[tuple[str, str]]
# What answers a message, or an iterator of them: with a message, or an iterator of them; for Ray Serve's proxies with bytes.
_Answer = Callable[[Any, ServicerContext], Any]
Refusal = tuple[grpc.StatusCode, str, Metadata]  # a call that is refused: status, text and metadata behind it

# Set by the process that answers: looks at an RPC's name and metadata.
look: Callable[[str, Metadata], Refusal | None] = lambda rpc, metadata: None  # noqa: E731
arrived: ContextVar[float] = ContextVar("arrived")  # `time.monotonic()` when the head of this call arrived


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler of an RPC, and stands before it. Ray Serve puts its own in the place of `_method_handlers`."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._method_handlers = handlers
        self._turns = asyncio.Semaphore(RECEIVED_AT_ONCE)
        self._places = {rpc: asyncio.Semaphore(limit) for rpc, limit in AT_ONCE.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a call whose head has arrived; None where there is no such RPC."""
        name = handler_call_details.method
        handler = self._method_handlers.get(name)
        if handler is None:
            return None
        rpc = name.rpartition("/")[2]
        # Each is given an iterator of messages first, and leaves it: they are read from the context.
        written = handler.response_serializer
        if not handler.response_streaming:
            call = partial(self._one, rpc, handler.unary_unary)
            return grpc.stream_unary_rpc_method_handler(call, response_serializer=written)
        answer = handler.stream_stream if handler.request_streaming else handler.unary_stream
        return grpc.stream_stream_rpc_method_handler(partial(self._many, rpc, answer), response_serializer=written)

    async def _one(self, rpc: str, answer: _Answer, _: object, context: ServicerContext) -> Message:
        """Answer the one message of a call with one."""
        arrived.set(time.monotonic())
        await _look(rpc, context)
        return await answer(await self._received(context), context)

    async def _many(self, rpc: str, answer: _Answer, _: object, context: ServicerContext) -> AsyncIterator[Message]:
        """Answer each message of a stream with one, and that of a Watch with many, for as long as the caller listens."""
        await _look(rpc, context)
        places = self._places[rpc]
        if places.locked():
            text = f"{AT_ONCE[rpc]} calls of {rpc} are open here; use one of them, or try again later"
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        room = asyncio.Semaphore(STREAM_IN_FLIGHT)
        async with places:
            asked = _messages(context, room) if rpc == STREAM else await self._received(context)
            async with aclosing(answer(asked, context)) as answers:
                async for each in answers:
                    yield each
                    room.release()

    async def _received(self, context: ServicerContext) -> bytes:
        """Return the one message of a call."""
        try:
            async with asyncio.timeout(RECEIVE_S), self._turns:
                message: bytes = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the message did not arrive within {RECEIVE_S:g} s")
        if message is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return message


async def _look(rpc: str, context: ServicerContext) -> None:
    refused = look(rpc, context.invocation_metadata())
    if refused is not None:
        await context.abort(*refused)


async def _messages(context: ServicerContext, room: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """Yield a stream's messages; `room` bounds how many are received, and not yet answered."""
    while True:
        await room.acquire()
        try:
            async with asyncio.timeout(STREAM_IDLE_S):
                message = await context.read()
        except TimeoutError:
            context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
            context.set_details(f"the stream brought no request for {STREAM_IDLE_S:g} s; open another")
            return
        if message is grpc.aio.EOF:
            return
        yield message


def add_to_server(servicer: Any, server: grpc.Server) -> None:  # noqa: ANN401 (Serve passes a mock)
    """Register the services' handlers: what `grpc_servicer_functions` of Ray Serve names.

    Requests stay bytes, so that a proxy neither parses nor pickles messages: the replica parses them, once. RPCs that
    are not here are answered UNIMPLEMENTED by gRPC itself. Serve puts its own methods in the place of the servicer's.
    """
    kinds = {STREAM: grpc.stream_stream_rpc_method_handler, WATCH: grpc.unary_stream_rpc_method_handler}
    handlers = {
        path: kinds.get(rpc, grpc.unary_unary_rpc_method_handler)(
            getattr(servicer, rpc),
            request_deserializer=None,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for rpc, path in PATHS.items()
    }
    server.add_generic_rpc_handlers((_Handlers(handlers),))
