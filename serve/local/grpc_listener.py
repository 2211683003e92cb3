"""Ray Serve's own gRPC servers, held to an address and to limits: Ray binds them to every interface, and sets none.

There is no option for either in Ray 2.60. `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `guard`, which Serve calls in
each proxy before it listens; replicas call it themselves. Where Ray differs from what is expected here, that process does
not start.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from models.errors import ClusterError

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
# Functions of (server, address), by the module that they are taken from, and the module and the words that call them: of
# clients, and of other deployments.
_LISTENERS = (
    ("ray.serve._private.default_impl", "add_grpc_address", "ray.serve._private.grpc_util", 'address(server, f"[::]:'),
    (
        "ray.serve._private.replica",
        "add_port_to_grpc_server",
        "ray.serve._private.replica",
        'server(self._server, "[::]:',
    ),
)


def check() -> None:
    """Raise ClusterError where Ray does not listen in the way that `guard` changes."""
    for module, name, caller, words in _LISTENERS:
        function = getattr(importlib.import_module(module), name, None)
        is_called = words in inspect.getsource(importlib.import_module(caller))
        if function is None or len(inspect.signature(function).parameters) != 2 or not is_called:
            raise ClusterError(
                f"Ray Serve's gRPC servers cannot be held to an address: {module}.{name} is not what was expected; "
                "use the version of Ray that this one is made for"
            )


def guard(message_bytes: int | None = None) -> list[Any]:
    """Hold the gRPC servers that this process will start to HOST_VARIABLE and LIMITS.

    Args:
        message_bytes: Most that a request's message may have, where the environment does not say; None for Ray's 2 GiB.

    Returns:
        No middleware: Serve asks for a list of them.
    """
    from ray.serve._private import constants

    check()
    host = os.environ.get(HOST_VARIABLE)
    if host:
        for path, name, *_ in _LISTENERS:
            module = importlib.import_module(path)
            setattr(module, name, _held_to(host, getattr(module, name)))
    # The list that each server takes its options from.
    options: list[tuple[str, int]] = constants.DEFAULT_GRPC_SERVER_OPTIONS
    options += [limit for limit in LIMITS if limit not in options]
    if message_bytes is not None and MESSAGE_VARIABLE not in os.environ:
        # Of two options with one name, gRPC takes the first.
        options.insert(0, ("grpc.max_receive_message_length", message_bytes))
    return []


def _held_to(host: str, listen: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    place = f"[{host}]" if ":" in host else host
    return lambda server, address: listen(server, f"{place}:{address.rpartition(':')[2]}")
