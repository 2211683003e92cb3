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

from models.errors import DeadlineError, OverloadedError
from serve.config import Plan

# What each image took lately, for telling how long the queue will take: the newest batch counts a fifth.
_SMOOTHING = 0.2
_FIRST_GUESS_S = 0.02


@dataclass(slots=True, eq=False)
class Item:
    """One image, or one tensor of a batch. Its times are those of `time.monotonic()`, 0.0 until then."""

    payload: Any  # encoded bytes, or a tensor
    weight: int  # images it counts for
    deadline: float  # when it is dropped
    options: Any = None  # what the runner needs to know of it
    decoded: Any = None  # what the decoder made of the payload; an exception where it could not
    since: float = 0.0  # when it began to wait
    taken: float = 0.0  # when it was taken from the queue
    decoded_at: float = 0.0
    run_at: float = 0.0  # when its batch began to run
    done_at: float = 0.0  # when that ended
    batch: int = 0  # images of that batch
    dropped: tuple[str, str] | None = None  # why nobody waits for it, and the stage that it was dropped before
    future: asyncio.Future[Any] = field(init=False)  # its outcome; an exception is one too

    def is_alive(self, stage: str) -> bool:
        """Tell whether somebody waits for it; else it is dropped before this stage."""
        if self.deadline <= time.monotonic():
            self.dropped = ("deadline", stage)
        elif self.future.done():
            self.dropped = ("cancelled", stage)
        return self.dropped is None


class Batcher:
    """Run items in batches, in threads.

    `submit` and `admit` belong to one event loop; everything that is counted is counted there. The first `submit` starts
    the threads.

    Args:
        decode: Sets `decoded` of an item, and does not raise; called by the threads, as is the next.
        run: Gives one outcome per item, in order; what it raises is the outcome of each.
        plan: Threads, images that may wait, and most images of a batch; an item of more is a batch of its own.
        delay_s: How long a free worker waits for a batch to fill, counted from when its first item came.
        report: Called on the event loop with the items of each batch, and with those that were dropped.
    """

    def __init__(
        self,
        decode: Callable[[Item], None],
        run: Callable[[Sequence[Item]], Sequence[Any]],
        plan: Plan,
        *,
        delay_s: float,
        report: Callable[[Sequence[Item]], None],
    ) -> None:
        self._decode_one, self._run_batch = decode, run
        self._plan = plan
        self._delay_s = delay_s
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = _Queue()
        self._decoded = _Queue(room=2 * plan.batch_size) if plan.decoders else None
        self._image_s = _FIRST_GUESS_S
        # Of each thread: when it began what it is at, for noticing one that hangs.
        self._busy_since: dict[str, float] = {}

    @property
    def queued(self) -> int:
        """Images submitted and not yet begun; the bound is on these."""
        return self._waiting.images

    def admit(self, images: int) -> None:
        """Raise OverloadedError if so many images more would not fit, or would wait past any use."""
        if self.queued and self.queued + images > self._plan.max_queue:
            # Half of the queue is gone by then: who comes back finds room, and not everyone at once.
            seconds = max(self.queued * self._image_s / self._plan.workers / 2, 0.1)
            raise OverloadedError(
                f"overloaded: {self.queued} images are waiting, and the queue holds {self._plan.max_queue}; "
                f"try again in {math.ceil(seconds)} s",
                retry_after_s=seconds,
            )

    def stuck_s(self) -> float:
        """Return for how long a thread has been at one piece of work, seconds; 0 where none is at any."""
        return max((time.monotonic() - since for since in self._busy_since.copy().values()), default=0.0)

    async def submit(self, items: Sequence[Item]) -> list[Any]:
        """Run the items of one request, and return their outcomes in order; of a batch that failed its exception.

        Raises:
            OverloadedError: They do not fit into the queue; none was begun.
            DeadlineError: The earliest deadline passed first.
        """
        if not items:
            return []
        self.admit(sum(item.weight for item in items))
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
            self._report([item for item in self._waiting.remove_cancelled() if not item.is_alive("decode")])
            if isinstance(err, TimeoutError):
                raise DeadlineError("the deadline passed before the answer was there") from None
            raise

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        work = [("model", self._work)] * self._plan.workers + [("decode", self._decode_only)] * self._plan.decoders
        for index, (kind, call) in enumerate(work):
            threading.Thread(target=call, name=f"{kind}-{index}", daemon=True).start()
        return self._loop

    def close(self) -> None:
        """Let the threads end once they have done what they are at."""
        self._waiting.close()
        if self._decoded is not None:
            self._decoded.close()

    # What follows runs in the threads.

    def _work(self) -> None:
        for items in self._taken(self._decoded or self._waiting, self._plan.batch_size, self._delay_s):
            self._run(self._alive(items if self._decoded else self._decode(items), "inference"))

    def _decode_only(self) -> None:
        assert self._decoded is not None
        for items in self._taken(self._waiting, 1, 0.0):
            self._decoded.put(self._decode(items), wait=True)

    def _taken(self, queue: _Queue, most: int, delay_s: float) -> Iterator[list[Item]]:
        name = threading.current_thread().name
        while items := queue.take(most, delay_s):
            self._busy_since[name] = time.monotonic()
            yield items
            self._busy_since.pop(name, None)

    def _decode(self, items: list[Item]) -> list[Item]:
        alive = []
        for item in items:
            item.taken = time.monotonic()
            if self._alive([item], "decode"):
                self._decode_one(item)
                item.decoded_at = time.monotonic()
                alive.append(item)
        return alive

    def _alive(self, items: list[Item], stage: str) -> list[Item]:
        """Return those that somebody waits for, and report the others."""
        alive = [item for item in items if item.is_alive(stage)]
        if len(alive) < len(items):
            self._tell(self._report, [item for item in items if item.dropped])
        return alive

    def _run(self, items: list[Item]) -> None:
        if not items:
            return
        began = time.monotonic()
        outcomes: Sequence[Any]
        try:
            outcomes = self._run_batch(items)
        except Exception as err:  # noqa: BLE001 (it is each of these requests' outcome)
            outcomes = [err] * len(items)
        ended = time.monotonic()
        ran = [item for item in items if not isinstance(item.decoded, Exception)]
        size = sum(item.weight for item in ran)
        for item in ran:
            item.run_at, item.done_at, item.batch = began, ended, size
        self._tell(self._deliver, items, outcomes)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None, "`submit` has set it"
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: the process ends
            self.close()

    # What follows runs on the event loop again.

    def _deliver(self, items: list[Item], outcomes: Sequence[Any]) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            if not item.future.done():
                item.future.set_result(outcome)
        if ran := [item for item in items if item.batch]:
            seconds = ran[0].done_at - ran[0].run_at + sum(item.decoded_at - item.taken for item in ran)
            self._image_s += _SMOOTHING * (seconds / ran[0].batch - self._image_s)
        self._report(items)


class _Queue:
    """Items that wait, first come first served; threads take from it when they are free.

    Args:
        room: Images that `put(wait=True)` lets in; None for any number.
    """

    def __init__(self, room: int | None = None) -> None:
        self._items: deque[Item] = deque()
        self._room = room
        self._closed = False
        self._changed = threading.Condition()
        # Images that wait. Written under the lock; a reader without it sees one value or the next.
        self.images = 0

    def put(self, items: Sequence[Item], *, wait: bool = False) -> None:
        """Add items; `wait` for room first, where it has a bound."""
        with self._changed:
            while wait and self._room is not None and self.images >= self._room and not self._closed:
                self._changed.wait()
            self._items.extend(items)
            self.images += sum(item.weight for item in items)
            self._changed.notify(len(items) if self._room is None else 2)

    def take(self, most: int, delay_s: float) -> list[Item]:
        """Wait for an item, and return it with those behind it, up to `most` images together; none means closed."""
        with self._changed:
            while not self._closed:
                until = self._items[0].since + delay_s if self._items else math.inf
                if self.images >= most or until <= time.monotonic():
                    break
                # Whoever waits here may find that all have expired meanwhile, and waits on.
                self._changed.wait(None if until == math.inf else until - time.monotonic())
            taken: list[Item] = []
            # One that is larger than a batch goes alone.
            while self._items and (not taken or self._items[0].weight <= most):
                taken.append(self._items.popleft())
                most -= taken[-1].weight
                self.images -= taken[-1].weight
            if self._room is not None:
                self._changed.notify_all()
            return taken

    def remove_cancelled(self) -> list[Item]:
        """Remove the items whose futures are cancelled, and return them."""
        with self._changed:
            removed = [item for item in self._items if item.future.cancelled()]
            self._items = deque(item for item in self._items if not item.future.cancelled())
            self.images -= sum(item.weight for item in removed)
            return removed

    def close(self) -> None:
        """Let those who wait go on: `take` gives what is left, then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
