"""Ray Data without the three actors that only a cluster needs, for a local Ray that lives as long as one command.

For every execution Ray Data 2.60 keeps an actor that collects statistics for the dashboard, one that bargains for nodes
with the autoscaler, and one that notes which node an actor is on: three Python processes. A local Ray has no dashboard, no
autoscaler and one node. Ray has no option to leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class _Method:
    """Looks like an actor's method; called in this process."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (whatever the actor takes)
        import ray

        return ray.put(self._call(*args, **options))


class _Ignored:
    """Looks like an actor's method; does nothing."""

    def remote(self, *args: object, **options: object) -> None:
        """Take anything."""


class _NoStatistics:
    """In place of Ray Data's _StatsActor: nobody looks at its figures."""

    num_datasets = 0

    def __getattr__(self, name: str) -> _Ignored:
        return _Ignored()

    @property
    def gen_dataset_id(self) -> _Method:
        """Name a dataset, as the actor does."""
        _NoStatistics.num_datasets += 1
        return _Method(lambda: str(_NoStatistics.num_datasets))


class _OneNode:
    """In place of Ray Data's ActorLocationTracker. Picklable: actors report to it, in vain."""

    @property
    def update_actor_location(self) -> _Ignored:
        """Take an actor's node."""
        return _Ignored()


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
