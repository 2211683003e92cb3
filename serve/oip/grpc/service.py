"""Which RPCs there are, for Ray Serve's gRPC proxies and replicas. Light: a proxy imports it, and no model.

A call's head is looked at before its message is received, which gRPC's own handlers of one message do not let one do:
they are called when it is whole. On the wire such a call is the same as a stream of one message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc

SERVICE = "inference.GRPCInferenceService"
RPCS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    # Extensions that clients of Triton call.
    *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
)
# Messages that are received at once. How long one is shows only when it is there, packed ones at their full length: so
# this bounds what calls take before they are counted. A small message is there already, and takes its turn in no time.
RECEIVED_AT_ONCE = 2
# For a message's turn, and to receive it.
RECEIVE_S = 5.0

Metadata = Sequence[tuple[str, str]]
# A call that is refused: status, text and metadata behind it.
Refusal = tuple[grpc.StatusCode, str, Metadata]

# Set by the process that answers: looks at an RPC's name and metadata.
look: Callable[[str, Metadata], Refusal | None] = lambda rpc, metadata: None  # noqa: E731
# `time.monotonic()` when the head of this call arrived.
arrived: ContextVar[float] = ContextVar("arrived")


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler of an RPC, and stands before it. Ray Serve puts its own in the place of `_method_handlers`."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._method_handlers = handlers
        self._turns = asyncio.Semaphore(RECEIVED_AT_ONCE)

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:  # noqa: ANN401 (grpc has no types)
        """Return the handler of a call whose head has arrived; None where there is no such RPC."""
        name = handler_call_details.method
        handler = self._method_handlers.get(name)
        if handler is None:
            return None
        call = partial(_call, handler.unary_unary, name.rpartition("/")[2], self._turns)
        return grpc.stream_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)


async def _call(
    answer: Callable[[bytes, Any], Awaitable[Any]],
    rpc: str,
    turns: asyncio.Semaphore,
    _: Any,  # noqa: ANN401 (grpc's iterator; one message is read from the context)
    context: Any,  # noqa: ANN401 (grpc has no types)
) -> Any:  # noqa: ANN401 (bytes for Serve, else a message)
    arrived.set(time.monotonic())
    refused = look(rpc, context.invocation_metadata())
    if refused is not None:
        await context.abort(*refused)
    try:
        async with asyncio.timeout(RECEIVE_S), turns:
            message = await context.read()
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the message did not arrive within {RECEIVE_S:g} s")
    if message is grpc.aio.EOF:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
    return await answer(message, context)


def add_to_server(servicer: Any, server: grpc.Server) -> None:  # noqa: ANN401 (Serve passes a mock)
    """Register the service's handlers: what `grpc_servicer_functions` of Ray Serve names.

    Requests stay bytes, so that a proxy neither parses nor pickles messages: the replica parses them, once. RPCs that
    are not here are answered UNIMPLEMENTED by gRPC itself.

    Args:
        servicer: Has a method for each of `RPCS`; Serve puts its own in their place.
        server: To register with.
    """
    handlers = {
        f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=None,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name in RPCS
    }
    server.add_generic_rpc_handlers((_Handlers(handlers),))
