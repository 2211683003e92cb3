"""What workers count in Ray's key-value store."""

from __future__ import annotations

import pytest
from ray.experimental import internal_kv

from pipeline.session.attempts import LOOK_EVERY_S, RunState, StopFlag


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
