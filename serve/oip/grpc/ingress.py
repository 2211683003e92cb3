"""What `serve.replica` mixes in for gRPC, and the function that registers it; see `serve.app`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.bodies import BodyMemory
from serve.http.keys import ApiKeys
from serve.metrics.replica_metrics import ServeMetrics
from serve.model.backend import ModelControl
from serve.model.models import Models
from serve.oip.endpoint import Endpoint, Limits
from serve.oip.grpc import service
from serve.oip.grpc.call import Context, Message
from serve.oip.grpc.calls import GrpcCalls
from serve.oip.grpc.service import add_to_server

__all__ = ["Methods", "add_to_server"]


class Methods:
    """The methods that Ray Serve looks for on an ingress deployment: mix in, beside the attributes below."""

    models: Models
    config: ServeConfig
    # Where callers may load and unload models.
    control: ModelControl | None = None
    # Set by what is mixed in to, where it counts.
    _metrics: ServeMetrics | None = None
    _access_log: AccessLog | None = None
    # Shared with HTTP, where it is mixed in to what answers both.
    _memory: BodyMemory | None = None
    _calls: GrpcCalls | None = None

    async def ServerLive(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802 (the RPC's name)
        """Tell whether the server runs."""
        return await self._answer("ServerLive", request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Tell whether the model is ready."""
        return await self._answer("ServerReady", request, grpc_context)

    async def ModelReady(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Tell whether a model is ready."""
        return await self._answer("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Describe the server."""
        return await self._answer("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Describe a model."""
        return await self._answer("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Answer an inference request."""
        return await self._answer("ModelInfer", request, grpc_context)

    async def ModelStreamInfer(  # noqa: N802
        self, request: AsyncIterator[bytes], grpc_context: Context
    ) -> AsyncGenerator[Message]:
        """Answer a stream of inference requests."""
        async with aclosing(self._ready_calls().stream(request, grpc_context)) as answers:
            async for each in answers:
                yield each

    async def Check(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Tell whether a service or a model answers, as gRPC's health protocol asks."""
        return await self._answer("Check", request, grpc_context)

    async def Watch(self, request: bytes, grpc_context: Context) -> AsyncGenerator[Message]:  # noqa: N802
        """Tell it now, and again for as long as the caller listens."""
        async with aclosing(self._ready_calls().watch(request, grpc_context)) as answers:
            async for each in answers:
                yield each

    async def ModelConfig(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Describe a model as a configuration does."""
        return await self._answer("ModelConfig", request, grpc_context)

    async def ModelStatistics(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Give the counts of models."""
        return await self._answer("ModelStatistics", request, grpc_context)

    async def RepositoryIndex(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """List the models."""
        return await self._answer("RepositoryIndex", request, grpc_context)

    async def RepositoryModelLoad(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Load a model."""
        return await self._answer("RepositoryModelLoad", request, grpc_context)

    async def RepositoryModelUnload(self, request: bytes, grpc_context: Context) -> Message:  # noqa: N802
        """Unload a model."""
        return await self._answer("RepositoryModelUnload", request, grpc_context)

    def start_grpc(self) -> None:
        """Look at the head of each call of this process from now on, before its message is received."""
        self._calls = self._build_calls()
        service.look = self._calls.look

    def _build_calls(self) -> GrpcCalls:
        path = self.config.api_keys_file
        return GrpcCalls(
            Endpoint(self.models, Limits.of(self.config), self.control),
            self._memory or BodyMemory(self.config.max_body_memory),
            keys=None if path is None else ApiKeys(path),
            metrics=self._metrics,
            access_log=self._access_log,
        )

    async def _answer(self, rpc: str, request: bytes, context: Context) -> Message:
        return await self._ready_calls().answer(rpc, request, context)

    def _ready_calls(self) -> GrpcCalls:
        if self._calls is None:
            self._calls = self._build_calls()
        return self._calls
