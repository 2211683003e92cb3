"""What the driver and its workers must agree on while a run lasts: whether to stop, and what processes died of.

Kept in Ray's own key-value store: no process, no file, and gone with the cluster or at the end of the run. A worker
that dies in native code leaves nothing but the note of what it had begun, and that is what tells the next one to take
care.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.patches import kv_patches

# How often a worker looks whether to stop: each look is a round trip to the cluster's head.
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class RunState:
    """State of one run, by its id. Goes to workers in their arguments; needs a Ray that is connected.

    Attributes:
        run_id: Unlike any other's.
        job: What people know it by: the submission id.
    """

    run_id: str
    job: str = "local"
    # The graph's reference: within an object it travels as any argument does, at its top Ray would warn of it.
    _graph: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def namespace(self) -> str:
        """Return what the run's keys are below."""
        return f"shardlabel-{self.run_id}"

    def request_stop(self) -> None:
        """Have workers pass over the units that they have not begun."""
        kv_patches.put(self.namespace, "stop", b"1")

    def is_stopping(self) -> bool:
        """Tell whether a stop was asked for."""
        return kv_patches.get(self.namespace, "stop") is not None

    def share_graph(self, graph: bytes) -> Any:  # noqa: ANN401 (untyped library)
        """Put the joined graph into the object store; the caller keeps what is returned as long as workers may start."""
        reference = ray.put(graph)
        self._graph.append(reference)
        return reference

    def graph(self) -> bytes:
        """Return the joined graph that the driver shared; one copy travels to each node."""
        return bytes(ray.get(self._graph[0]))

    def clear(self) -> None:
        """Forget the run."""
        kv_patches.clear(self.namespace)


class TaskLog:
    """What happened to the processes that had a task so far: each death is noted with the unit that was under way.

    Of a death that its whole node shared (a preemption, a power cut) nothing follows for the unit.

    Args:
        state: Of the run.
        task: Number that no other task of the run has.
        node: Id of this node.
    """

    def __init__(self, state: RunState, task: int, node: str) -> None:
        self._namespace = state.namespace
        self._key = f"task-{task}"
        self._node = node
        self._past: list[tuple[int, str]] | None = None  # (unit, node) of earlier processes

    def begin(self, unit: int) -> None:
        """Note that a unit is under way from now on. One round trip, but for a task that a process died of."""
        if self._past is None:
            self._past = []
            if not self._put(unit, overwrite=False):
                return
            content = kv_patches.get(self._namespace, self._key)
            self._past = [(number, node) for number, node in json.loads(content or b"[]")]
        self._put(unit, overwrite=True)

    def deaths(self, unit: int | None = None) -> int:
        """Return how many processes died by themselves while they had the unit, or any of the task."""
        past = [node for number, node in self._past or () if unit in (None, number)]
        if not past:
            return 0
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return sum(node in alive for node in past)

    def begun(self, unit: int) -> int:
        """Return how often the unit was begun, whatever ended that."""
        return 1 + sum(number == unit for number, _ in self._past or ())

    def end(self) -> None:
        """Forget the task: it came to an end."""
        kv_patches.delete(self._namespace, self._key)

    def _put(self, unit: int, *, overwrite: bool) -> bool:
        content = json.dumps([*(self._past or ()), (unit, self._node)]).encode()
        return kv_patches.put(self._namespace, self._key, content, overwrite=overwrite)


class StopFlag:
    """Whether a run is to stop, as a worker knows it; looked up twice a second at most."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._is_set = False
        self._looked_at = -math.inf

    def is_set(self) -> bool:
        """Tell whether a stop was asked for, up to LOOK_EVERY_S ago."""
        now = time.monotonic()
        if not self._is_set and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._is_set = self._state.is_stopping()
        return self._is_set
