"""The pulling batcher: a batch is what waits at the moment that the model is free, never what a clock has cut.

    submit ──▶ waiting (bounded) ──▶ [decoders ──▶ decoded (bounded)] ──▶ workers: decode, run ──▶ outcomes

With decoders (GPU), the model's thread only runs batches. Without (CPU), each worker decodes what it then runs: on a core
of its own there is nothing to overlap, and a decoder beside it would only delay the batch that is running.

Jobs whose request was cancelled or whose deadline passed are dropped before they are decoded, and again before they
are run.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.errors import DeadlineError, OverloadedError
from serve.model.queue import Item, Queue, Ticket

# What each image took lately, for telling how long the queue will take: the newest batch counts a fifth.
_SMOOTHING = 0.2
_FIRST_GUESS_S = 0.02


class Runner(Protocol):
    """What a batcher drives, from its threads."""

    def decode(self, job: Item) -> None:
        """Set `job.decoded`; never raises."""

    def run(self, jobs: Sequence[Item]) -> list[Any]:
        """Return one outcome per job, in order; an exception fails all of them."""


@dataclass(slots=True)
class BatchReport:
    """What one batch took, for the metrics.

    Attributes:
        size: Images that were run.
        queue_s: Of each job, from submission until it was taken.
        decode_s: Of each job that was decoded.
        infer_s: Of the whole batch.
        dropped: Jobs by (reason, before which stage).
    """

    size: int = 0
    queue_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    infer_s: float = 0.0
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: bool = False


class Batcher:
    """Run jobs in batches, in threads.

    `submit` and `admit` belong to one event loop; everything that is counted is counted there.

    Args:
        runner: Decodes and runs.
        batch_size: Most images of a batch; a job of more is one of its own.
        workers: Threads that run batches.
        decoders: Threads that only decode; 0 for none.
        max_queue: Images that may wait.
        delay_s: How long a free worker waits for a batch to fill, counted from when its first job came.
        report: Called on the event loop after each batch, and for jobs that were dropped before one.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        batch_size: int,
        workers: int,
        decoders: int,
        max_queue: int,
        delay_s: float,
        report: Callable[[BatchReport], None],
    ) -> None:
        self._runner = runner
        self._batch_size = batch_size
        self._delay_s = delay_s
        self._max_queue = max_queue
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._waiting = Queue()
        self._decoded = Queue(room=2 * batch_size) if decoders else None
        self._lanes = workers
        self._image_s = _FIRST_GUESS_S
        # Of each thread: when it began what it is at, for noticing one that hangs.
        self._busy_since: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"model-{i}", daemon=True) for i in range(workers)
        ] + [threading.Thread(target=self._decode_only, name=f"decode-{i}", daemon=True) for i in range(decoders)]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Images submitted and not yet begun; the bound is on these."""
        return self._waiting.images

    def admit(self, images: int) -> None:
        """Raise OverloadedError if so many images more would not fit, or would wait past any use."""
        if self.queued and self.queued + images > self._max_queue:
            # Half of the queue is gone by then: who comes back finds room, and not everyone at once.
            seconds = max(self.wait_s() / 2, 0.1)
            raise OverloadedError(
                f"overloaded: {self.queued} images are waiting, and the queue holds {self._max_queue}; "
                f"try again in {math.ceil(seconds)} s",
                retry_after_s=seconds,
            )

    def wait_s(self) -> float:
        """Return how long an image would wait that came now, seconds."""
        return self.queued * self._image_s / self._lanes

    def stuck_s(self) -> float:
        """Return for how long a thread has been at one piece of work, seconds; 0 where none is at any."""
        return max((time.monotonic() - since for since in self._busy_since.copy().values()), default=0.0)

    async def submit(self, jobs: Sequence[Item]) -> list[Any]:
        """Run the jobs of one request, and return their outcomes in order.

        Raises:
            OverloadedError: They do not fit into the queue; none was begun.
            DeadlineError: The earliest deadline passed first.
        """
        if not jobs:
            return []
        images = sum(job.weight for job in jobs)
        self.admit(images)
        ticket = Ticket(len(jobs), self._loop.create_future())
        now = time.monotonic()
        for index, job in enumerate(jobs):
            job.ticket, job.index, job.since = ticket, index, now
        timer = self._loop.call_at(min(job.deadline for job in jobs), self._expire, ticket)
        self._waiting.put(jobs)
        try:
            await ticket.future
        except asyncio.CancelledError:
            ticket.dead = ticket.dead or "cancelled"
            raise
        finally:
            timer.cancel()
            if ticket.left:
                self._forget(ticket)
        return ticket.outcomes

    def close(self) -> None:
        """Let the threads end once they have done what they are at."""
        self._waiting.close()
        if self._decoded is not None:
            self._decoded.close()

    def _expire(self, ticket: Ticket) -> None:
        ticket.dead = "deadline"
        if not ticket.future.done():
            ticket.future.set_exception(DeadlineError("the deadline passed before the answer was there"))

    def _forget(self, ticket: Ticket) -> None:
        """Take a request's waiting jobs out of the queue: they must not keep others out."""
        ticket.dead = ticket.dead or "failed"
        removed = self._waiting.remove(ticket)
        if removed:
            self._report(BatchReport(dropped=Counter({(ticket.dead, "decode"): removed})))

    # What follows runs in the threads.

    def _work(self) -> None:
        source = self._decoded or self._waiting
        name = threading.current_thread().name
        while jobs := source.take(self._batch_size, self._delay_s):
            self._busy_since[name] = time.monotonic()
            report = BatchReport()
            if self._decoded is None:
                jobs = self._begin(jobs, report)
            self._run(self._alive(jobs, report, "inference"), report)
            self._busy_since.pop(name, None)

    def _decode_only(self) -> None:
        assert self._decoded is not None
        name = threading.current_thread().name
        while jobs := self._waiting.take(1, 0.0):
            self._busy_since[name] = time.monotonic()
            report = BatchReport()
            jobs = self._begin(jobs, report)
            self._busy_since.pop(name, None)
            self._tell(self._deliver, [], [], report)
            self._decoded.put(jobs, wait=True)

    def _begin(self, jobs: list[Item], report: BatchReport) -> list[Item]:
        """Decode jobs that were taken from the queue."""
        alive = []
        for job in jobs:
            job.taken = time.monotonic()
            if self._alive([job], report, "decode"):
                report.queue_s.append(job.taken - job.since)
                self._runner.decode(job)
                job.decoded_at = time.monotonic()
                report.decode_s.append(job.decoded_at - job.taken)
                alive.append(job)
        return alive

    @staticmethod
    def _alive(jobs: list[Item], report: BatchReport, stage: str) -> list[Item]:
        alive = []
        for job in jobs:
            reason = job.why_dead()
            if reason is None:
                alive.append(job)
            else:
                report.dropped[reason, stage] += 1
        return alive

    def _run(self, jobs: list[Item], report: BatchReport) -> None:
        outcomes: list[Any] = []
        if jobs:
            began = time.monotonic()
            try:
                outcomes = self._runner.run(jobs)
            except Exception as err:  # noqa: BLE001 (it is each of these requests' outcome)
                outcomes = [err] * len(jobs)
                report.failed = True
            ended = time.monotonic()
            report.infer_s = ended - began
            ran = [job for job in jobs if not isinstance(job.decoded, Exception)]
            report.size = sum(job.weight for job in ran)
            for job in ran:
                job.run_at, job.done_at, job.batch = began, ended, report.size
        self._tell(self._deliver, jobs, outcomes, report)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: the process ends
            self.close()

    # What follows runs on the event loop again.

    def _deliver(self, jobs: list[Item], outcomes: list[Any], report: BatchReport) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            ticket = job.ticket
            ticket.outcomes[job.index] = outcome
            ticket.left -= 1
            if ticket.future.done():
                continue
            if report.failed:
                ticket.future.set_exception(outcome)
            elif ticket.left == 0:
                ticket.future.set_result(None)
        if report.size:
            each = (report.infer_s + sum(report.decode_s)) / report.size
            self._image_s += _SMOOTHING * (each - self._image_s)
        self._report(report)
