"""The pulling batcher: a batch is what waits at the moment that the model is free, never what a clock has cut.

    submit ──▶ waiting (bounded) ──▶ [decoders ──▶ decoded (bounded)] ──▶ workers: decode, run ──▶ outcomes

With decoders (GPU), the model's thread only runs batches. Without (CPU), each worker decodes what it then runs: on a core
of its own there is nothing to overlap, and a decoder beside it would only delay the batch that is running.

Items whose request was cancelled or whose deadline passed are dropped before they are decoded, and again before they
are run.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.errors import DeadlineError, InputError, OverloadedError
from serve.config import Plan


@dataclass(slots=True, eq=False)
class Item:
    """One image, or the model's own tensor of one. Its times are those of `time.monotonic()`, 0.0 until then."""

    payload: Any  # encoded bytes, or a tensor
    deadline: float  # when it is dropped
    options: Any = None  # what the runner needs to know of it
    digest: str = ""  # SHA-256 of the payload, in hexadecimal, where answers are logged
    decoded: Any = None  # what the decoder made of the payload
    outcome: Any = None  # what the runner made of that; an exception where either could not
    since: float = 0.0  # when it began to wait
    taken: float = 0.0  # when it was taken from the queue
    decoded_at: float = 0.0
    run_at: float = 0.0  # when its batch began to run
    done_at: float = 0.0  # when that ended
    batch: int = 0  # images of that batch
    dropped: tuple[str, str] | None = None  # why nobody waits for it, and the stage that it was dropped before
    future: asyncio.Future[Any] = field(init=False)  # its outcome

    def is_alive(self, stage: str) -> bool:
        """Tell whether somebody waits for it; else it is dropped before this stage."""
        if self.deadline <= time.monotonic():
            self.dropped = ("deadline", stage)
        elif self.future.done():
            self.dropped = ("cancelled", stage)
        return self.dropped is None


@dataclass(eq=False)
class Batcher:
    """Run items in batches, in threads.

    `submit` and `admit` belong to one event loop; everything that is counted is counted there. The first `submit` starts
    the threads, which call `decode` and `run`.
    """

    decode: Callable[[Item], Any]  # gives `decoded` of an item; what it raises is the outcome
    run: Callable[[Sequence[Item]], Sequence[Any]]  # gives the outcomes, in order; what it raises is that of each
    plan: Plan  # threads, images that may wait, and most images of a batch
    delay_s: float  # how long a free worker waits for a batch to fill, counted from when its first item came
    report: Callable[[Sequence[Item]], None]  # is told on the event loop of each batch, and of what was dropped

    def __post_init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting, self._decoded = _Queue(), _Queue()
        self._room = threading.Semaphore(2 * self.plan.batch_size)  # decoded items that may wait to be run
        # When each thread that is at work began it, for noticing one that hangs.
        self._busy_since: list[float] = []

    @property
    def queued(self) -> int:
        """Images submitted and not yet begun; the bound is on these."""
        return len(self._waiting)

    def admit(self, images: int) -> None:
        """Raise OverloadedError if so many images more would not fit, or would wait past any use."""
        if self.queued and self.queued + images > self.plan.max_queue:
            # Half of the time that the queue takes: who comes back finds room, and not everyone at once.
            seconds = max(self._waiting.waited_s() / 2, 0.1)
            raise OverloadedError(
                f"overloaded: {self.queued} images are waiting, and the queue holds {self.plan.max_queue}; "
                f"try again in {math.ceil(seconds)} s",
                retry_after_s=seconds,
            )

    def stuck_s(self) -> float:
        """Return for how long a thread has been at one piece of work, seconds; 0 where none is at any."""
        now = time.monotonic()
        return now - min(self._busy_since, default=now)

    async def submit(self, items: Sequence[Item]) -> list[Any]:
        """Run the items of one request, and return their outcomes in order; of a batch that failed its exception.

        Raises:
            OverloadedError: They do not fit into the queue; none was begun.
            DeadlineError: The earliest deadline passed first.
        """
        if not items:
            return []
        self.admit(len(items))
        loop = self._loop or self._start()
        now = time.monotonic()
        for item in items:
            item.future, item.since = loop.create_future(), now
        self._waiting.put(items)
        try:
            async with asyncio.timeout_at(min(item.deadline for item in items)):
                return [await item.future for item in items]
        except (TimeoutError, asyncio.CancelledError) as err:
            for item in items:
                item.future.cancel()
            # Those that wait must not keep others out of the queue.
            self.report([item for item in self._waiting.remove_cancelled() if not item.is_alive("decode")])
            if isinstance(err, TimeoutError):
                raise DeadlineError("the deadline passed before the answer was there") from None
            raise

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        work = [("model", self._work)] * self.plan.workers + [("decode", self._decode_only)] * self.plan.decoders
        for index, (kind, call) in enumerate(work):
            threading.Thread(target=call, name=f"{kind}-{index}", daemon=True).start()
        return self._loop

    def close(self) -> None:
        """Let the threads end once they have done what they are at."""
        self._waiting.close()
        self._decoded.close()
        self._room.release(self.plan.max_queue + self.plan.decoders)  # room for all that is left

    # What follows runs in the threads.

    def _work(self) -> None:
        queue = self._decoded if self.plan.decoders else self._waiting
        for items in self._taken(queue, self.plan.batch_size, self.delay_s):
            if self.plan.decoders:
                self._room.release(len(items))
            else:
                items = self._decode(items)
            if items := self._alive(items, "inference"):
                self._run(items)

    def _decode_only(self) -> None:
        for items in self._taken(self._waiting, 1, 0.0):
            if decoded := self._decode(items):
                self._room.acquire()
                self._decoded.put(decoded)

    def _taken(self, queue: _Queue, most: int, delay_s: float) -> Iterator[list[Item]]:
        while items := queue.take(most, delay_s):
            self._busy_since.append(began := time.monotonic())
            yield items
            self._busy_since.remove(began)

    def _decode(self, items: list[Item]) -> list[Item]:
        """Decode those that somebody waits for; deliver those that cannot be decoded, and return the others."""
        decoded = []
        for item in items:
            item.taken = time.monotonic()
            if self._alive([item], "decode"):
                try:
                    item.decoded = self.decode(item)
                    decoded.append(item)
                except Exception as err:  # noqa: BLE001 (a fault of ours must not take the batch with it)
                    # The traceback of an image's own error has this frame, and this the item, for the collector to find.
                    item.outcome = err.with_traceback(None) if isinstance(err, InputError) else err
                item.decoded_at = time.monotonic()
                if item.outcome is not None:
                    self._tell(self._deliver, [item])
        return decoded

    def _alive(self, items: list[Item], stage: str) -> list[Item]:
        """Return those that somebody waits for, and report the others."""
        alive = [item for item in items if item.is_alive(stage)]
        if len(alive) < len(items):
            self._tell(self.report, [item for item in items if item.dropped])
        return alive

    def _run(self, items: list[Item]) -> None:
        began = time.monotonic()
        outcomes: Sequence[Any]
        try:
            outcomes = self.run(items)
        except Exception as err:  # noqa: BLE001 (it is each of these requests' outcome)
            outcomes = [err] * len(items)
        ended = time.monotonic()
        for item, outcome in zip(items, outcomes, strict=True):
            item.run_at, item.done_at, item.batch, item.outcome = began, ended, len(items), outcome
        self._tell(self._deliver, items)

    def _tell(self, call: Callable[[list[Item]], None], items: list[Item]) -> None:
        assert self._loop is not None, "`submit` has set it"
        try:
            self._loop.call_soon_threadsafe(call, items)
        except RuntimeError:  # the loop is closed: the process ends
            self.close()

    # What follows runs on the event loop again.

    def _deliver(self, items: list[Item]) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_result(item.outcome)
        self.report(items)


class _Queue:
    """Items that wait, first come first served; threads take from it when they are free."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def waited_s(self) -> float:
        """Return for how long the first has waited, seconds; 0 where none waits."""
        with self._changed:
            return time.monotonic() - self._items[0].since if self._items else 0.0

    def put(self, items: Sequence[Item]) -> None:
        """Add items."""
        with self._changed:
            self._items.extend(items)
            self._changed.notify(len(items))

    def take(self, most: int, delay_s: float) -> list[Item]:
        """Wait for an item, and return it with those behind it, up to `most` together; none means closed."""
        with self._changed:
            while not self._closed and len(self._items) < most:
                left = self._items[0].since + delay_s - time.monotonic() if self._items else None
                if left is not None and left <= 0:
                    break
                # Whoever waits here may find that all have expired meanwhile, and waits on.
                self._changed.wait(left)
            return [self._items.popleft() for _ in range(min(most, len(self._items)))]

    def remove_cancelled(self) -> list[Item]:
        """Remove the items whose futures are cancelled, and return them."""
        with self._changed:
            removed = [item for item in self._items if item.future.cancelled()]
            self._items = deque(item for item in self._items if not item.future.cancelled())
            return removed

    def close(self) -> None:
        """Let those who wait go on: `take` gives what is left, then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
