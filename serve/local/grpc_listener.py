"""What Ray Serve's own servers are held to: Ray binds those of gRPC to every interface, and sets no limits.

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `guard`, which Serve calls in each proxy before it listens; replicas call
it themselves. Where Ray differs from what is expected, that process does not start. The HTTP proxy gets a second try for
requests whose replica died.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import NotReadyError
from pipeline.patches.grpc_patches import hold_grpc
from serve.http.asgi import error_response, rejection

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
# By HAProxy and by Serve's proxy: a request up to this is held until it is answered, and tried again where its replica died.
HELD_BYTES = 512 * 1024


def guard(message_bytes: int | None = None) -> list[Any]:
    """Hold the gRPC servers that this process will start to HOST_VARIABLE and LIMITS.

    Args:
        message_bytes: Most that a request's message may have, where the environment does not say; None for Ray's 2 GiB.

    Returns:
        Starlette's middlewares of this process' HTTP server: a second try, in a proxy.

    Raises:
        ClusterError: Ray is another than expected.
    """
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    options = list(LIMITS)
    if message_bytes is not None and MESSAGE_VARIABLE not in os.environ:
        options.append(("grpc.max_receive_message_length", message_bytes))
    hold_grpc(os.environ.get(HOST_VARIABLE), options)
    try:
        ray_serve.get_replica_context()
    except RayServeException:
        return [Middleware(retry_once)]
    return []


def retry_once(app: ASGIApp) -> ASGIApp:
    """Wrap Serve's HTTP proxy: a request that ends without an answer is tried once more, or answered 503.

    HAProxy sends the request of a dead replica to another one. Where there is none, it sends it to this proxy, which may not
    know yet that the replica is dead, and ends without an answer, of which its HTTP server makes a 500 in plain text. By
    then it knows: a retry waits for the replica's successor.
    """

    async def answer_or_retry(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        held: list[Message] = []
        size, is_settled = 0, False

        async def read() -> Message:
            nonlocal size, is_settled
            if again := next(read_before, None):
                return again
            message = await receive()
            is_settled |= message["type"] == "http.disconnect"  # nobody waits
            size += len(message.get("body", b""))
            held.append(message)
            if size > HELD_BYTES:
                held.clear()
            return message

        async def answer(message: Message) -> None:
            nonlocal is_settled
            is_settled = True
            await send(message)

        for _ in range(2):
            if not is_settled and size <= HELD_BYTES:
                read_before = iter(held.copy())
                await app(dict(scope), read, answer)
        if not is_settled:
            gone = NotReadyError("the replica that had this request died; try again")
            await error_response(rejection(gone, scope["path"]))(scope, receive, send)

    return answer_or_retry
