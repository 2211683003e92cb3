"""Ray Data without the three actors that only a cluster needs, for a local Ray that lives as long as one command.

For every execution Ray Data 2.60 keeps an actor that collects statistics for the dashboard, one that bargains for nodes
with the autoscaler, and one that notes which node an actor is on: three Python processes. A local Ray has no dashboard, no
autoscaler and one node. Ray has no option to leave them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from pipeline.patches.patches import DATA_AUTOSCALER, DATA_LOCATIONS, DATA_STATISTICS


@contextmanager
def without_cluster_actors() -> Iterator[None]:
    """Replace the three actors in this process, as far as the patches are on and fit."""
    with (
        DATA_STATISTICS.applied(lambda _: _NoStatistics),
        DATA_AUTOSCALER.applied(lambda _: _FixedCluster),
        DATA_LOCATIONS.applied(lambda _: _OneNode, lambda _: _all_here),
    ):
        yield


# What looks like an actor's method, and does nothing.
_IGNORED = SimpleNamespace(remote=lambda *args, **options: None)


class _NoStatistics:
    """In place of Ray Data's _StatsActor: nobody looks at its figures."""

    num_datasets = 0

    def __getattr__(self, name: str) -> SimpleNamespace:
        return _IGNORED

    @property
    def gen_dataset_id(self) -> SimpleNamespace:
        """Name a dataset, as the actor does."""
        import ray

        _NoStatistics.num_datasets += 1
        return SimpleNamespace(remote=lambda: ray.put(str(_NoStatistics.num_datasets)))


class _OneNode:
    """In place of Ray Data's ActorLocationTracker. Picklable: actors report to it, in vain."""

    @property
    def update_actor_location(self) -> SimpleNamespace:
        """Take an actor's node."""
        return _IGNORED


def _all_here(logical_actor_ids: Sequence[str]) -> dict[str, str]:
    """Say that all actors are on this node.

    Not by way of the object store, as an actor's answer would come: a process that touches it after the raylet died is
    ended at once, without a word.
    """
    import ray

    return dict.fromkeys(logical_actor_ids, ray.get_runtime_context().get_node_id())


class _FixedCluster:
    """In place of Ray Data's cluster autoscaler: a cluster that is what it is."""

    def __init__(self, *args: object, **options: object) -> None:
        import ray
        from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

        self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        """Do nothing."""

    def on_executor_shutdown(self) -> None:
        """Do nothing."""

    def get_total_resources(self) -> Any:  # noqa: ANN401 (untyped library)
        """Return what the node has, as ExecutionResources."""
        return self._total
