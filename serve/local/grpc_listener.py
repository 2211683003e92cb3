"""What Ray Serve's own gRPC servers are held to: Ray binds them to every interface, and sets no limits.

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `guard`, which Serve calls in each proxy before it listens; replicas call
it themselves. Where Ray differs from what is expected, that process does not start.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.patches.grpc_patches import hold_grpc

# Of the address; where it is not set, every interface, as on a cluster, whose nodes must reach each other's replicas.
HOST_VARIABLE = "SHARDLABEL_GRPC_HOST"
MESSAGE_VARIABLE = "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"
LIMITS = (
    # A process also has HTTP to serve, and files to open.
    ("grpc.max_allowed_incoming_connections", 1024),
    ("grpc.max_concurrent_streams", 100),
    # Of a connection that says nothing, and of one that makes no call.
    ("grpc.server_handshake_timeout_ms", 60_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


def guard(message_bytes: int | None = None) -> list[Any]:
    """Hold the gRPC servers that this process will start to HOST_VARIABLE and LIMITS.

    Args:
        message_bytes: Most that a request's message may have, where the environment does not say; None for Ray's 2 GiB.

    Returns:
        No middleware: Serve asks for a list of them.

    Raises:
        ClusterError: Ray is another than expected.
    """
    options = list(LIMITS)
    if message_bytes is not None and MESSAGE_VARIABLE not in os.environ:
        options.append(("grpc.max_receive_message_length", message_bytes))
    hold_grpc(os.environ.get(HOST_VARIABLE), options)
    return []
