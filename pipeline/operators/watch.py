"""Watches how busy the GPUs are: one line in a run says that they idle, and what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.session.pools import Pools
from pipeline.session.stage_clock import Stage, StageClock

WATCH_EVERY_S = 10.0
# A GPU that is busy for less than this share of an interval counts as idle.
BUSY_SHARE = 0.5
REMEDIES = {
    Stage.READ: "faster storage, or more decoders to read at the same time, would keep them busy",
    Stage.DECODE: "more CPUs would keep them busy, or fewer GPUs would do",
    Stage.LABEL: "the bottleneck is the network, or the object store's memory",
}


class GpuWatch:
    """Warns once in a run when GPUs are idle, and says what they wait for.

    Args:
        clock: Has the seconds of all processes, as their rows come to the driver.
        pools: Number of actors and decoders.
        say: Takes the warning.
    """

    def __init__(self, clock: StageClock, pools: Pools, say: Callable[[str], None]) -> None:
        self._clock = clock
        self._pools = pools
        self._say = say
        self._since: float | None = None
        self._is_done = pools.gpu_share == 0

    def look(self) -> None:
        """Warn if the GPUs were idle; called with each block of labels."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._clock.take()  # the first labels bring seconds from before them
        if self._is_done or now - self._since < WATCH_EVERY_S:
            return
        spent, span = self._clock.take(), now - self._since
        self._since = now
        busy = spent[Stage.LABEL] / (span * self._pools.actors[0])
        if busy >= BUSY_SHARE:
            return
        self._is_done = True
        before = spent[Stage.READ] + spent[Stage.DECODE]
        # Decoders that are not busy themselves wait, for room for their pixels.
        waits_for = Stage.READ if spent[Stage.READ] > spent[Stage.DECODE] else Stage.DECODE
        if before < BUSY_SHARE * span * self._pools.decoders:
            waits_for = Stage.LABEL
        shares = ", ".join(
            f"{stage} {spent[stage] / (span * self._pools.decoders):.0%}" for stage in (Stage.READ, Stage.DECODE)
        )
        what = "the transfer of pixels" if waits_for is Stage.LABEL else waits_for
        self._say(
            f"shardlabel: warning: the GPUs are busy {busy:.0%} of the time, and wait for {what} "
            f"(of the {self._pools.decoders} decoders' time: {shares}); {REMEDIES[waits_for]}"
        )
