from __future__ import annotations

import time

import pytest

from pipeline.patches.data_patches import without_cluster_actors
from pipeline.patches.patch import SWITCH_VARIABLE

state = pytest.importorskip("ray.data._internal.execution.streaming_executor_state")


def test_results_are_looked_for_less_often_and_that_can_be_undone(monkeypatch):
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    with without_cluster_actors():
        began = time.perf_counter()
        state.time.sleep(0.01)
        assert time.perf_counter() - began >= 0.03
        assert abs(state.time.time() - time.time()) < 1

    assert state.time is time
