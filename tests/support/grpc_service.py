"""The gRPC services of an ingress on a real gRPC server, in the test's own event loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc

from serve.oip.grpc.ingress import Methods
from serve.oip.grpc.service import add_to_server

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
# Of the service, each with one message and one answer.
RPCS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)


class Servicer:
    """Translates gRPC's argument names to those of Ray Serve."""

    def __init__(self, ingress: Methods) -> None:
        self._ingress = ingress

    def __getattr__(self, rpc: str):
        return lambda request, context: getattr(self._ingress, rpc)(request, grpc_context=context)


@contextlib.asynccontextmanager
async def serving(ingress: Methods) -> AsyncIterator[grpc.aio.Channel]:
    """Serve until the block ends, and yield a channel to the server."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_to_server(Servicer(ingress), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)
