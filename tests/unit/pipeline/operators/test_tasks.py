from __future__ import annotations

import pytest
from ray.data import DataContext

from pipeline.operators.tasks import TASK_BYTES, in_tasks, pool
from pipeline.sources.unit import Slice, Unit


def units(count: int, size: int) -> list[Unit]:
    return [Unit(number, (Slice(f"{number}.tar", size, ""),)) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 3, 17, 400])
@pytest.mark.parametrize("size", [1, TASK_BYTES // 3, TASK_BYTES, 5 * TASK_BYTES])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_every_unit_is_in_one_task_and_in_order(count, size, workers):
    tasks = list(in_tasks(units(count, size), workers))

    assert [unit.number for task in tasks for unit in task] == list(range(count))
    assert all(task for task in tasks)
    assert all(len(task) == 1 or sum(unit.size for unit in task) <= TASK_BYTES for task in tasks)


def test_small_units_go_together_but_first_and_last_ones_alone():
    sizes = [len(task) for task in in_tasks(units(400, TASK_BYTES // 3), workers=2)]

    assert sizes[:4] == [1, 1, 1, 1]
    assert max(sizes) == 3
    assert sizes.count(3) > 100
    assert sizes[-15:] == [1] * 15


def test_few_units_for_many_workers_are_a_task_each():
    assert [len(task) for task in in_tasks(units(100, 1), workers=50)] == [1] * 100


def test_large_units_are_a_task_each():
    assert {len(task) for task in in_tasks(units(400, TASK_BYTES // 2 + 1), workers=2)} == {1}


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
def test_a_pool_whose_actors_are_full_grows(at_a_time):
    full = pool(1, 4, at_a_time, isolate=False)

    grows_at = DataContext().autoscaling_config.actor_pool_util_upscaling_threshold
    assert full.max_tasks_in_flight_per_actor / full.max_concurrent_calls_per_actor >= grows_at
