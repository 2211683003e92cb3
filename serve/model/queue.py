"""What waits for the model: jobs, the requests they belong to, and the line they stand in."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Ticket:
    """One request: its jobs' outcomes, and the future that is set when the last is there."""

    __slots__ = ("dead", "future", "left", "outcomes")

    def __init__(self, size: int, future: asyncio.Future[None]) -> None:
        self.outcomes: list[Any] = [None] * size
        self.left = size
        self.future = future
        # "cancelled" or "deadline" where nobody waits any more. Written by the event loop, read by the threads.
        self.dead: str | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One image, or one tensor of a batch.

    Attributes:
        payload: Encoded bytes, or a tensor.
        weight: Images it counts for.
        deadline: `time.monotonic()` after which it is dropped.
        options: What the runner needs to know of it.
        decoded: What the decoder made of the payload; an exception where it could not.
        since: `time.monotonic()` when it began to wait.
        taken: `time.monotonic()` when it was taken from the queue; 0.0 before that, as those below.
        decoded_at: When it was decoded.
        run_at: When its batch began to run.
        done_at: When that ended.
        batch: Images of that batch.
    """

    payload: Any
    weight: int
    deadline: float
    options: Any = None
    decoded: Any = None
    since: float = 0.0
    taken: float = 0.0
    decoded_at: float = 0.0
    run_at: float = 0.0
    done_at: float = 0.0
    batch: int = 0
    ticket: Ticket = field(init=False)
    index: int = field(init=False)

    def why_dead(self) -> str | None:
        """Return why nobody waits for it; None while somebody does."""
        return self.ticket.dead or ("deadline" if self.deadline <= time.monotonic() else None)


class Queue:
    """Jobs that wait, first come first served; threads take from it when they are free.

    Args:
        room: Images that `put(wait=True)` lets in; None for any number.
    """

    def __init__(self, room: int | None = None) -> None:
        self._jobs: deque[Item] = deque()
        self._room = room
        self._closed = False
        self._changed = threading.Condition()
        # Images that wait. Written under the lock; a reader without it sees one value or the next.
        self.images = 0

    def put(self, jobs: Sequence[Item], *, wait: bool = False) -> None:
        """Add jobs; `wait` for room first, where it has a bound."""
        with self._changed:
            while wait and self._room is not None and self.images >= self._room and not self._closed:
                self._changed.wait()
            self._jobs.extend(jobs)
            self.images += sum(job.weight for job in jobs)
            self._changed.notify(len(jobs) if self._room is None else 2)

    def take(self, most: int, delay_s: float) -> list[Item]:
        """Wait for a job, and return it with those behind it, up to `most` images together; none means closed."""
        with self._changed:
            while not self._closed:
                until = self._jobs[0].since + delay_s if self._jobs else math.inf
                if self.images >= most or until <= time.monotonic():
                    break
                # Whoever waits here may find that all have expired meanwhile, and waits on.
                self._changed.wait(None if until == math.inf else until - time.monotonic())
            taken: list[Item] = []
            # One that is larger than a batch goes alone.
            while self._jobs and (not taken or self._jobs[0].weight <= most):
                taken.append(self._jobs.popleft())
                most -= taken[-1].weight
                self.images -= taken[-1].weight
            if self._room is not None:
                self._changed.notify_all()
            return taken

    def remove(self, ticket: Ticket) -> int:
        """Remove a request's jobs; return how many were still waiting."""
        with self._changed:
            removed = [job for job in self._jobs if job.ticket is ticket]
            if removed:
                self._jobs = deque(job for job in self._jobs if job.ticket is not ticket)
                self.images -= sum(job.weight for job in removed)
            return len(removed)

    def close(self) -> None:
        """Let those who wait go on: `take` gives what is left, then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
