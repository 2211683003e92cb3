"""Ray Serve's own gRPC servers, held to an address and to limits: there is no option for either in Ray 2.60."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from pipeline.patches.patches import GRPC


def check_grpc() -> None:
    """Raise ClusterError where Ray does not listen in the way that `hold_grpc` changes."""
    GRPC.fits()


def hold_grpc(host: str | None, options: list[tuple[str, int]]) -> None:
    """Hold the gRPC servers that this process will start to an address and to options, for good.

    Args:
        host: Address to listen on; None for every interface.
        options: Of gRPC. Of two with one name, gRPC takes the first: these stand before Ray's own.

    Raises:
        ClusterError: Ray is another than expected.
    """
    held = (_held_to(host), _held_to(host)) if host else ()
    GRPC.apply(*held)
    from ray.serve._private import constants

    # The list that each server takes its options from.
    taken: list[tuple[str, int]] = constants.DEFAULT_GRPC_SERVER_OPTIONS
    taken[:0] = [option for option in options if option not in taken]


def _held_to(host: str) -> Callable[[Callable[[Any, str], Any]], Callable[[Any, str], Any]]:
    place = f"[{host}]" if ":" in host else host

    def held(listen: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        @wraps(listen)  # keeps the signature: a process may be held twice
        def listen_there(server: Any, address: str) -> Any:  # noqa: ANN401 (grpc has no types)
            return listen(server, f"{place}:{address.rpartition(':')[2]}")

        return listen_there

    return held
