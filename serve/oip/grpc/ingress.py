"""What `serve.replica` mixes in for gRPC; see `serve.app`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import cached_property

from google.protobuf.message import Message
from grpc.aio import ServicerContext

from serve.config import ServeConfig
from serve.http.application import Extras
from serve.model.models import Models
from serve.oip.endpoint import Endpoint
from serve.oip.grpc import service
from serve.oip.grpc.calls import GrpcCalls


class Methods:
    """The methods that Ray Serve looks for on an ingress deployment: mix in, beside the attributes below."""

    models: Models
    config: ServeConfig
    # Those that HTTP has.
    extras: Extras = Extras()

    @cached_property
    def _calls(self) -> GrpcCalls:
        return GrpcCalls(Endpoint(self.models, self.config, self.extras.control), self.extras)

    def start_grpc(self) -> None:
        """Look at the head of each call of this process from now on, before its message is received."""
        service.look = self._calls.look

    async def ModelStreamInfer(  # noqa: N802 (the RPC's name)
        self, request: AsyncIterator[bytes], grpc_context: ServicerContext
    ) -> AsyncGenerator[Message]:
        """Answer a stream of inference requests."""
        async with aclosing(self._calls.stream(request, grpc_context)) as answers:
            async for each in answers:
                yield each

    async def Watch(self, request: bytes, grpc_context: ServicerContext) -> AsyncGenerator[Message]:  # noqa: N802
        """Tell whether a service or a model answers, and again for as long as the caller listens."""
        async with aclosing(self._calls.watch(request, grpc_context)) as answers:
            async for each in answers:
                yield each


def _method(rpc: str) -> Callable[[Methods, bytes, ServicerContext], Awaitable[Message]]:
    async def answer(self: Methods, request: bytes, grpc_context: ServicerContext) -> Message:
        return await self._calls.answer(rpc, request, grpc_context)

    return answer


for _rpc in (*service.RPCS, "Check"):
    setattr(Methods, _rpc, _method(_rpc))
