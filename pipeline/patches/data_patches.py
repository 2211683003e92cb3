"""Ray Data without three actors that only a cluster needs, for a local Ray that lives as long as one command.

For every execution Ray Data 2.60 keeps an actor that collects statistics for the dashboard, one that requests nodes from
the autoscaler, and one that records the node of each actor: three Python processes. A local Ray has no dashboard, no
autoscaler and one node. Ray has no option to leave these actors out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from pipeline.patches.patches import DATA_AUTOSCALER, DATA_LOCATIONS, DATA_STATISTICS


@contextmanager
def without_cluster_actors() -> Iterator[None]:
    """Replace the three actors in this process, where their patches are switched on and fit."""
    with (
        DATA_STATISTICS.applied(lambda _: _NoStatistics),
        DATA_AUTOSCALER.applied(lambda _: _FixedCluster),
        DATA_LOCATIONS.applied(lambda _: _OneNode, lambda _: _all_here),
    ):
        yield


# Looks like an actor's method, and does nothing.
_IGNORED = SimpleNamespace(remote=lambda *args, **options: None)


class _NoStatistics:
    """Replaces Ray Data's _StatsActor: nobody reads its statistics."""

    num_datasets = 0

    def __getattr__(self, name: str) -> SimpleNamespace:
        return _IGNORED

    @property
    def gen_dataset_id(self) -> SimpleNamespace:
        """Return the id of a dataset, like the actor."""
        import ray

        _NoStatistics.num_datasets += 1
        return SimpleNamespace(remote=lambda: ray.put(str(_NoStatistics.num_datasets)))


class _OneNode:
    """Replaces Ray Data's ActorLocationTracker. Picklable: actors report to it, without effect."""

    @property
    def update_actor_location(self) -> SimpleNamespace:
        """Ignore the node of an actor."""
        return _IGNORED


def _all_here(logical_actor_ids: Sequence[str]) -> dict[str, str]:
    """Return this node as the location of all actors.

    The answer does not go through the object store, as an actor's would: a process that touches the store after the raylet
    died is killed at once, without a message.
    """
    import ray

    return dict.fromkeys(logical_actor_ids, ray.get_runtime_context().get_node_id())


class _FixedCluster:
    """Replaces Ray Data's cluster autoscaler: this cluster does not change."""

    def __init__(self, *args: object, **options: object) -> None:
        import ray
        from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

        self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """Do nothing."""

    def on_executor_shutdown(self) -> None:
        """Do nothing."""

    def get_total_resources(self) -> Any:  # noqa: ANN401 (untyped library)
        """Return the resources of the node, as ExecutionResources."""
        return self._total
