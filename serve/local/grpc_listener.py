"""What Ray Serve's own servers are held to: Ray binds those of gRPC to every interface, and sets no limits.

Its HTTP proxy gets a second try for requests whose replica died (`serve.local.retry`).

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `guard`, which Serve calls in each proxy before it listens; replicas call
it themselves. Where Ray differs from what is expected, that process does not start.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.middleware import Middleware

from pipeline.patches.grpc_patches import hold_grpc
from serve.local.retry import RetryOnce

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
    # Ray says so with a text, which gRPC ignores: two endpoints of a machine would share the port of a replica each, and get
    # one another's calls. Ray tries the next port where one cannot be had.
    ("grpc.so_reuseport", 0),
)


def guard(message_bytes: int | None = None) -> list[Any]:
    """Hold the gRPC servers that this process will start to HOST_VARIABLE and LIMITS.

    Args:
        message_bytes: Most that a request's message may have, where the environment does not say; None for Ray's 2 GiB.

    Returns:
        Starlette's middlewares of this process' HTTP server: a second try, in a proxy.

    Raises:
        ClusterError: Ray is another than expected.
    """
    options = list(LIMITS)
    if message_bytes is not None and MESSAGE_VARIABLE not in os.environ:
        options.append(("grpc.max_receive_message_length", message_bytes))
    hold_grpc(os.environ.get(HOST_VARIABLE), options)
    return [] if _is_replica() else [Middleware(RetryOnce)]


def _is_replica() -> bool:
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    try:
        ray_serve.get_replica_context()
    except RayServeException:
        return False
    return True
