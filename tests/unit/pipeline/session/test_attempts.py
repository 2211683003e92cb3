"""What workers count in Ray's key-value store."""

from __future__ import annotations

import pytest
from ray.experimental import internal_kv

from pipeline.session.attempts import LOOK_EVERY_S, RunState, StopFlag, TaskLog


class Store:
    """In place of Ray's key-value store; counts the round trips."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes] = {}
        self.trips = 0

    def put(self, key: str | bytes, value: str | bytes, overwrite: bool = True, *, namespace: str) -> bool:
        self.trips += 1
        there = (namespace, _text(key)) in self.values
        if overwrite or not there:
            self.values[namespace, _text(key)] = _text(value).encode()
        return there

    def get(self, key: str | bytes, *, namespace: str) -> bytes | None:
        self.trips += 1
        return self.values.get((namespace, _text(key)))

    def delete(self, key: str | bytes, *, namespace: str) -> None:
        self.trips += 1
        self.values.pop((namespace, _text(key)), None)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(internal_kv, "_internal_kv_put", store.put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", store.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", store.delete)
    return store


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the nodes that live; a test may change it."""
    names = {"here", "there"}
    monkeypatch.setattr(
        "pipeline.session.attempts.ray.nodes",
        lambda: [{"NodeID": name, "Alive": name in names} for name in ("here", "there")],
    )
    return names


def died(units: list[int], *, node: str = "here", task: int = 5) -> None:
    """Begin a task's units in a process that dies with the last of them."""
    log = TaskLog(RunState("run"), task, node)
    for unit in units:
        log.begin(unit)


def again(unit: int, *, run: str = "run", task: int = 5) -> TaskLog:
    log = TaskLog(RunState(run), task, "here")
    log.begin(unit)
    return log


def test_a_death_counts_for_the_unit_that_was_under_way(store: Store, alive: set[str]) -> None:
    died([5, 6])
    died([5, 6])
    log = again(5)
    assert [log.deaths(unit) for unit in (5, 6, 7)] == [0, 2, 0]
    assert log.deaths() == 2


def test_the_loss_of_a_node_is_no_death_of_the_unit_also_where_it_is_noticed_late(
    store: Store, alive: set[str]
) -> None:
    died([5], node="there")
    log = again(5)
    assert (log.deaths(5), log.begun(5)) == (1, 2)
    alive.remove("there")
    assert (log.deaths(5), log.begun(5)) == (0, 2)


def test_a_task_that_came_to_its_end_is_forgotten(store: Store, alive: set[str]) -> None:
    died([5])
    again(5).end()
    assert again(5).deaths() == 0


def test_a_first_attempt_is_one_round_trip(store: Store) -> None:
    log = again(5)
    assert (store.trips, log.deaths()) == (1, 0)


def test_neither_runs_nor_tasks_count_each_others_deaths(store: Store, alive: set[str]) -> None:
    died([5])
    assert again(5, run="other").deaths() == 0
    assert again(7, task=7).deaths() == 0


def test_whether_to_stop_is_looked_up_now_and_then_and_not_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.session.attempts.time.monotonic", lambda: now)
    state = RunState("run")
    flag = StopFlag(state)

    assert not any(flag.is_set() for _ in range(5))
    assert store.trips == 1
    state.request_stop()
    now += LOOK_EVERY_S
    assert flag.is_set()
    trips = store.trips
    now += LOOK_EVERY_S
    assert flag.is_set()
    assert store.trips == trips
