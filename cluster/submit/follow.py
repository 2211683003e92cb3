"""Follow a job to its end: show its log, poll its state, and act on Ctrl-C and the deadline."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TextIO

from cluster.submit.jobs_client import Job, JobsClient, JobsUnreachableError
from models.errors import ClusterError

POLL_S = 1.0
# A cluster that has not answered for this long is given up. Its job may still run.
LOST_S = 600.0
# Time after the end of a job to fetch the rest of its log.
DRAIN_S = 10.0
# Time for a job that was asked to stop to finish its units in flight. Then Ray kills it.
STOP_WAIT_S = 60.0


class Answer(StrEnum):
    """A user's answer at Ctrl-C."""

    STOP = "stop"
    LEAVE = "leave"
    GO_ON = "go on"


class Outcome(StrEnum):
    """Why following ended."""

    OVER = "over"
    TIMED_OUT = "timed out"
    LEFT = "left"
    FORGOTTEN = "forgotten"


class JobLog:
    """The new part of a job's log, which every connection sends from its beginning.

    Args:
        mark: End of the line after which this job's log starts: Ray appends to the log of an earlier job of that name.

    Attributes:
        has_begun: Whether the mark has arrived.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark + "\n"
        self._held = ""
        self._seen = 0
        self._skip = 0
        self.has_begun = False

    def reconnect(self) -> None:
        """Expect the log from its beginning again."""
        self._skip = self._seen

    def add(self, text: str) -> str:
        """Take the text that arrived; return the part to show."""
        known = min(self._skip, len(text))
        self._skip -= known
        text = text[known:]
        self._seen += len(text)
        if self.has_begun:
            return text
        self._held += text
        place = self._held.rfind(self._mark)
        if place < 0:
            return ""
        self.has_begun = True
        shown, self._held = self._held[place + len(self._mark) :], ""
        return shown


@dataclass
class Watch:
    """Follow one job.

    Attributes:
        client: Client of its cluster.
        submission_id: Its name.
        log: Its log, with what was shown.
        say: Shows the user a message.
        ask: Asks the user what to do at Ctrl-C.
        deadline: `time.monotonic()` when to stop the job; None for never.
        out: Where its log is written; stdout by default.
        interrupted: Set by Ctrl-C.
    """

    client: JobsClient
    submission_id: str
    log: JobLog
    say: Callable[[str], None]
    ask: Callable[[], Awaitable[Answer]]
    deadline: float | None = None
    out: TextIO = field(default_factory=lambda: sys.stdout)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    _lost_since: float | None = None
    _is_stopping: bool = False
    _stop_was_heard: bool = False

    async def follow(self) -> tuple[Outcome, Job | None]:
        """Follow the job until it ends, the time is up, or the user leaves it.

        Raises:
            ClusterError: The cluster has not answered for LOST_S.
            ConfigError: The cluster no longer accepts the token.
        """
        reading = asyncio.create_task(self._read())
        try:
            while True:
                job, known = await self._poll()
                if not known:
                    return Outcome.FORGOTTEN, None
                if job is not None and job.is_over:
                    await self._drain(reading)
                    return self._end(job), job
                if self._is_late(2 * STOP_WAIT_S):
                    return Outcome.TIMED_OUT, job
                if self._is_late() and not self._is_stopping:
                    self.say("the time is up: stopping the job")
                    self._is_stopping = True
                if self.interrupted.is_set() and await self._handle_interrupt() is Answer.LEAVE:
                    return Outcome.LEFT, job
                if self._is_stopping and not self._stop_was_heard:
                    await self._stop()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.interrupted.wait(), POLL_S)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    def _is_late(self, by: float = 0.0) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline + by

    def _end(self, job: Job) -> Outcome:
        return Outcome.TIMED_OUT if job.status == "STOPPED" and self._is_late() else Outcome.OVER

    async def _handle_interrupt(self) -> Answer:
        """Ask the user what to do; mark the job as stopping if that is the answer."""
        self.interrupted.clear()
        answer = await self._ask()
        if answer is Answer.STOP:
            self.say("stopping the job once the units in progress are finished")
            self._is_stopping = True
        return answer

    async def _ask(self) -> Answer:
        """Ask the user; a second Ctrl-C at the question leaves the job."""
        asking = asyncio.ensure_future(self.ask())
        again = asyncio.ensure_future(self.interrupted.wait())
        done, _ = await asyncio.wait({asking, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if asking in done:
            return asking.result()
        asking.cancel()
        return Answer.LEAVE

    async def _poll(self) -> tuple[Job | None, bool]:
        """Return the job, or None if the connection is lost, and whether the cluster knows it."""
        try:
            job = await self.client.job(self.submission_id)
        except JobsUnreachableError as err:
            now = time.monotonic()
            if self._lost_since is None:
                self._lost_since = now
                self.say(f"the connection is lost; retrying: {err}")
            if now - self._lost_since > LOST_S:
                raise ClusterError(f"the cluster has not answered for {LOST_S:g} s: {err}") from err
            return None, True
        except ClusterError:
            # A dashboard that has just restarted does not know every job yet.
            return None, True
        if self._lost_since is not None:
            self.say(f"reconnected after {time.monotonic() - self._lost_since:.0f} s")
            self._lost_since = None
        return job, job is not None

    async def _stop(self) -> None:
        """Ask the job to stop; if that fails, the next poll asks again."""
        with suppress(ClusterError):
            self._stop_was_heard = await self.client.stop(self.submission_id)

    async def _read(self) -> None:
        """Show the log until cancelled, over as many connections as it takes."""
        while True:
            self.log.reconnect()
            with suppress(ClusterError):
                async for text in self.client.tail(self.submission_id):
                    self._show(text)
            await asyncio.sleep(POLL_S)

    async def _drain(self, reading: asyncio.Task[None]) -> None:
        """Show the rest of the log of a job that has ended."""
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            try:
                text = await self.client.log(self.submission_id)
            except ClusterError:
                await asyncio.sleep(POLL_S)
                continue
            self.log.reconnect()
            self._show(text)
            return
        self.say(f"the end of the log cannot be fetched; `ray job logs {self.submission_id}` may have it")

    def _show(self, text: str) -> None:
        shown = self.log.add(text)
        if shown:
            self.out.write(shown)
            self.out.flush()
