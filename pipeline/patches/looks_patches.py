"""Reads what Ray tells only through private names.

It changes nothing, and nothing depends on it: where Ray differs, the answer is a value that means "unknown".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

logger = logging.getLogger(__name__)

Look = TypeVar("Look", bound=Callable[..., Any])


def _or(unknown: object) -> Callable[[Look], Look]:
    """Return a value where Ray lacks what a function reads."""

    def decorate(look: Look) -> Look:
        @wraps(look)
        def guarded(*args: Any) -> Any:  # noqa: ANN401 (whatever the function takes and gives)
            try:
                return look(*args)
            except (ImportError, AttributeError, TypeError) as err:
                logger.info("Ray does not tell %s: %s", look.__name__, err)
                return unknown

        return cast(Look, guarded)

    return decorate


@_or(None)
def local_node() -> Any | None:  # noqa: ANN401 (Ray's own)
    """Return the Ray that this process has started, for comparison and for `dead_process`; None where there is none."""
    from ray._private import worker

    return worker._global_node


@_or(None)
def dead_process(node: Any) -> str | None:  # noqa: ANN401 (Ray's own)
    """Return which of a local Ray's own two processes has died; None where both live."""
    for name in ("gcs_server", "raylet"):
        if any(info.process.poll() is not None for info in node.all_processes.get(name, [])):
            return name
    return None


@_or({})
def most_resources() -> dict[str, float]:
    """Return the most of each resource that the cluster's autoscaler may provide; {} where it has none."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}


@_or(None)
def serve_options() -> tuple[Any, Any] | None:
    """Return the HTTP and gRPC options that the cluster's Serve was started with; None where Serve does not run."""
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config, ray.get(client._controller.get_grpc_config.remote()))


@_or(())
def node_providers() -> tuple[str, ...]:
    """Return the node providers that `ray up` knows, in order; () where that is unknown."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    return tuple(sorted(_NODE_PROVIDERS))
