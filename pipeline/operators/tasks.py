"""Operators as pools of actors, and how many units go to an actor in one task."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ray.data import ActorPoolStrategy, Dataset

from pipeline.sources.unit import Unit

# Some 300 photographs: what a task costs the driver and the raylet, 6 ms of a core, is then a hundredth of it.
TASK_BYTES = 32 * 2**20
# Tasks that each worker should still have before it, so that all end at the same time.
TASKS_AHEAD = 4


def in_tasks(units: Sequence[Unit], workers: int) -> Iterator[Sequence[Unit]]:
    """Cut units into tasks: small ones together, but alone at the start and towards the end.

    What comes of a unit is recorded when its task ends, so that first results should come early; and a worker that has
    nothing left to do should not watch another go through its units one by one.

    Args:
        units: In the order in which they are begun.
        workers: Actors that take tasks.

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
    """Return how many actors an operator has, and how many tasks each of them.

    Args:
        least: Actors that it begins with.
        most: Actors that it may grow to.
        at_a_time: Tasks that an actor runs at a time. As many wait beside it: Ray Data adds actors where those that are
            there have nearly twice as many tasks as they run, so that with fewer, nodes that join would stay idle.
        isolate: Whether the death of an actor must take no other task with it: none waits then.
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
    """Add an operator to a dataset: actors of a class, each task of which Ray tries again so often."""
    with warnings.catch_warnings():
        # Of its removal in 2.64; in 2.60 nothing else tells how often an actor's task is tried again.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            operator,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            ray_remote_args_fn=partial(dict, max_task_retries=retries),
            **options,
        )
