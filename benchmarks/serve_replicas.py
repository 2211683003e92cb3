"""The replicas of an endpoint that this process has started (`serve.local.launch.running`): processes and numbers."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.measure import descendants

APP, DEPLOYMENT = "shardlabel", "Classifier"


def replica_pids() -> list[int]:
    """Return the process ids of the replicas that this process' Ray runs, oldest first."""
    found = {}
    for pid in descendants(os.getpid()):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                found[pid] = Path(f"/proc/{pid}").stat().st_ctime
        except OSError:
            continue
    return sorted(found, key=found.__getitem__)


def replica_states() -> dict[str, int]:
    """Return how many replicas are in each of Serve's states."""
    from ray import serve as ray_serve

    app = ray_serve.status().applications[APP]
    states = app.deployments[DEPLOYMENT].replica_states if app.deployments else {}
    return {str(getattr(state, "value", state)): number for state, number in states.items()}


def wait_for_replicas(count: int, seconds: float) -> float:
    """Wait until so many replicas run, and no other is starting or stopping; return how long it took, or -1."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        states = replica_states()
        if states.get("RUNNING", 0) == count == sum(states.values()):
            return round(time.perf_counter() - began, 1)
        time.sleep(0.2)
    return -1.0
