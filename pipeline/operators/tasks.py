"""Operators as pools of actors, and how many units a task has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ray.data import ActorPoolStrategy, Dataset

from pipeline.sources.unit import Unit

# Some 300 photographs: a task costs the driver and the raylet 6 ms of a core, which is then a hundredth of its work.
TASK_BYTES = 32 * 2**20
# Tasks that each worker should still have ahead of it, so that all workers end at the same time.
TASKS_AHEAD = 4


def in_tasks(units: Sequence[Unit], workers: int) -> Iterator[Sequence[Unit]]:
    """Group units into tasks: small ones together, but single units at the start and towards the end.

    A unit's result is recorded when its task ends, so the first results should come early. A worker with nothing left to do
    should not wait while another goes through its units one by one.

    Args:
        units: Units in the order in which they begin.
        workers: Number of actors that take tasks.

    Yields:
        At least one unit each; several where they have no more than `TASK_BYTES` together.
    """
    begin = 0
    while begin < len(units):
        most = 1 if begin < 2 * workers else max(1, (len(units) - begin) // (TASKS_AHEAD * workers))
        end, size = begin + 1, units[begin].size
        while end < len(units) and end - begin < most and (size := size + units[end].size) <= TASK_BYTES:
            end += 1
        yield units[begin:end]
        begin = end


def pool(least: int, most: int, at_a_time: int = 1, *, isolate: bool) -> ActorPoolStrategy:
    """Return how many actors an operator has, and how many tasks each of them takes.

    Args:
        least: Number of actors at the start.
        most: Number of actors that it may grow to.
        at_a_time: Tasks that an actor runs at a time. As many more are queued: Ray Data adds actors only where the existing
            ones have nearly twice as many tasks as they run. With fewer, nodes that join would stay idle.
        isolate: Whether the death of an actor must not lose another task: then none is queued.
    """
    return ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_tasks_in_flight_per_actor=at_a_time if isolate else 2 * at_a_time,
        max_concurrent_calls_per_actor=at_a_time,
        enable_true_multi_threading=at_a_time > 1,
    )


def map_actors(
    dataset: Dataset,
    operator: type,
    arguments: tuple[Any, ...],
    *,
    retries: int,
    **options: Any,  # noqa: ANN401 (Ray's own)
) -> Dataset:
    """Add an operator to a dataset: a pool of actors; Ray retries each of their tasks `retries` times."""
    with warnings.catch_warnings():
        # The warning says that it is removed in 2.64; in 2.60 nothing else sets the retries of an actor's task.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            operator,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            ray_remote_args_fn=partial(dict, max_task_retries=retries),
            **options,
        )
