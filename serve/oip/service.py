"""Which RPCs there are, for Ray Serve's gRPC proxies and replicas. Light: a proxy imports it, and no model."""

from __future__ import annotations

from typing import Any

import grpc

SERVICE = "inference.GRPCInferenceService"
RPCS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    # Extensions that clients of Triton call.
    *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
)


def add_to_server(servicer: Any, server: grpc.Server) -> None:  # noqa: ANN401 (Serve passes a mock)
    """Register the service's handlers: what `grpc_servicer_functions` of Ray Serve names.

    Requests stay bytes, so that a proxy neither parses nor pickles messages: the replica parses them, once. RPCs that
    are not here are answered UNIMPLEMENTED by gRPC itself.

    Args:
        servicer: Has a method for each of `RPCS`; Serve puts its own in their place.
        server: To register with.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=None,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name in RPCS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
