"""Restricts Ray Serve's own gRPC servers to an address and to limits; Ray 2.60 has no option for either."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from pipeline.patches.patches import GRPC


def check_grpc() -> None:
    """Raise ClusterError where Ray does not listen in the way that `hold_grpc` expects."""
    GRPC.fits()


def hold_grpc(host: str | None, options: list[tuple[str, int]]) -> None:
    """Restrict all gRPC servers that this process will start to an address and options, permanently.

    Args:
        host: Address to listen on; None for every interface.
        options: gRPC options. gRPC takes the first of two with one name, so these go before Ray's own.

    Raises:
        ClusterError: Ray is not the expected version.
    """
    held = (_held_to(host), _held_to(host)) if host else ()
    GRPC.apply(*held)
    from ray.serve._private import constants

    # Each server takes its options from this list.
    taken: list[tuple[str, int]] = constants.DEFAULT_GRPC_SERVER_OPTIONS
    taken[:0] = [option for option in options if option not in taken]


def _held_to(host: str) -> Callable[[Callable[[Any, str], Any]], Callable[[Any, str], Any]]:
    place = f"[{host}]" if ":" in host else host

    def held(listen: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        @wraps(listen)  # keeps the signature: this process may be restricted twice
        def listen_there(server: Any, address: str) -> Any:  # noqa: ANN401 (grpc has no types)
            return listen(server, f"{place}:{address.rpartition(':')[2]}")

        return listen_there

    return held
