"""A decoder's side of the two-stage shape, with actors that are only made up."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from pipeline.operators import model_client
from pipeline.operators.model_client import ModelClient
from pipeline.session.stage_clock import StageClock


class SlowlyRead(dict):
    """A dict that gives other threads time while it is gone through."""

    def __iter__(self):
        for key in super().__iter__():
            threading.Event().wait(0.001)
            yield key


def test_actors_may_come_up_while_another_thread_chooses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = [
        SimpleNamespace(ready=SimpleNamespace(options=lambda place=place, **_: SimpleNamespace(remote=lambda: place)))
        for place in range(30)
    ]
    ray = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"),
        wait=lambda starting, **_: (starting[:1], starting[1:]),
        get=lambda place: threading.Event().wait(0.002) or f"node-{place}",
    )
    monkeypatch.setattr(model_client, "ray", ray)
    client = ModelClient(actors, StageClock(), threading.Lock())
    client._nodes = SlowlyRead()
    failures = []

    def choose() -> None:
        try:
            for _ in range(20):
                client._choose()
        except RuntimeError as err:
            failures.append(err)

    threads = [threading.Thread(target=choose) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(client._nodes) == 30
