"""What the driver and its workers must agree on during a run: whether to stop.

It is kept in Ray's own key-value store: it needs no process and no file, and ends with the cluster or the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from pipeline.patches.kv_patches import RayStore

# How often a worker asks whether to stop: each look is a round trip to the cluster's head.
LOOK_EVERY_S = 0.5
# A unit fails after so many attempts that killed its process or raised something unexpected.
MAX_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class RunState:
    """State of one run, by its id. Picklable; needs a connected Ray.

    Attributes:
        run_id: Unique to the run.
        job: Name that people know the run by: the submission id.
    """

    run_id: str
    job: str = "local"

    def request_stop(self) -> None:
        """Have workers skip the units that they have not begun."""
        self._store().put("stop", b"1")

    def is_stopping(self) -> bool:
        """Tell whether a stop was requested."""
        return self._store().get("stop") is not None

    def clear(self) -> None:
        """Delete the run's state."""
        self._store().clear()

    def _store(self) -> RayStore:
        return RayStore(f"shardlabel-{self.run_id}")


class StopFlag:
    """Whether a run is to stop, as a worker sees it; looked up twice a second at most."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._is_set = False
        self._looked_at = -math.inf

    def is_set(self) -> bool:
        """Tell whether a stop was requested, up to LOOK_EVERY_S ago."""
        now = time.monotonic()
        if not self._is_set and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._is_set = self._state.is_stopping()
        return self._is_set
