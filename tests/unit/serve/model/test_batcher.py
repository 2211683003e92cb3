"""The pulling batcher: what waits is taken when the model is free, and what nobody waits for is not run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from models.errors import DeadlineError, OverloadedError, UndecodableImageError
from serve.config import Plan
from serve.model.batcher import Batcher, Item


class Model:
    """Doubles numbers. While `gate` is shut, a batch waits at it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.decoded: list[int] = []
        self.error: Exception | None = None

    def decode(self, job: Item) -> int:
        self.decoded.append(job.payload)
        if job.payload < 0:
            raise UndecodableImageError("below zero")
        return job.payload

    def run(self, jobs):
        self.batches.append([job.payload for job in jobs])
        self.entered.release()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return [2 * job.decoded for job in jobs]


class Setting:
    """A batcher, its model and what it reported, for the time of one test."""

    def __init__(self, **settings) -> None:
        self.model = Model()
        self.reports: list[list[Item]] = []
        self.delay_s = settings.pop("delay_s", 0.0)
        self.plan = Plan.model_construct(**{"batch_size": 4, "workers": 1, "decoders": 0, "max_queue": 8} | settings)

    async def __aenter__(self) -> Setting:
        self.batcher = Batcher(
            self.model.decode, self.model.run, self.plan, delay_s=self.delay_s, report=self.reports.append
        )
        return self

    async def __aexit__(self, *exc) -> None:
        self.model.gate.set()
        self.batcher.close()

    def submit(self, *numbers: int, seconds: float = 10.0) -> asyncio.Task:
        deadline = time.monotonic() + seconds
        return asyncio.create_task(self.batcher.submit([Item(n, deadline) for n in numbers]))

    async def busy(self, number: int = 0) -> asyncio.Task:
        """Let one job stand at the gate, so that what follows has to wait."""
        self.model.gate.clear()
        task = self.submit(number)
        await asyncio.to_thread(self.model.entered.acquire)
        return task

    def dropped(self) -> Counter:
        return Counter(item.dropped for items in self.reports for item in items if item.dropped)


def scenario(test):
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    run.__name__ = test.__name__
    return run


@pytest.mark.parametrize("decoders", [0, 2])
def test_outcomes_come_in_order(decoders):
    async def test():
        async with Setting(decoders=decoders, max_queue=100) as s:
            answers = await asyncio.gather(*[s.submit(*range(i, i + 3)) for i in range(20)])
        assert answers == [[2 * n for n in range(i, i + 3)] for i in range(20)]

    asyncio.run(test())


@scenario
async def test_one_job_does_not_wait_for_others():
    async with Setting() as s:
        await s.submit(1)
        await s.submit(2)

        assert s.model.batches == [[1], [2]]


@scenario
async def test_what_came_while_the_model_was_busy_is_one_batch_up_to_its_size():
    async with Setting() as s:
        first = await s.busy(0)
        rest = [s.submit(n) for n in range(1, 7)]
        await asyncio.sleep(0.05)
        s.model.gate.set()
        await asyncio.gather(first, *rest)

        assert s.model.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert [items[0].batch for items in s.reports if items[0].batch] == [1, 4, 2]


@scenario
async def test_a_delay_lets_a_batch_fill_and_no_longer_than_that():
    async with Setting(delay_s=0.5) as s:
        began = time.monotonic()
        tasks = [s.submit(n) for n in range(4)]
        await asyncio.gather(*tasks)
        full = time.monotonic() - began
        began = time.monotonic()
        await s.submit(9)
        alone = time.monotonic() - began

        assert s.model.batches == [[0, 1, 2, 3], [9]]
        assert full < 0.4
        assert 0.45 < alone < 2


@scenario
async def test_the_queue_is_bounded_and_says_when_to_come_back():
    async with Setting() as s:
        first = await s.busy()
        waiting = [s.submit(n) for n in range(8)]
        await asyncio.sleep(0.05)

        with pytest.raises(OverloadedError) as caught:
            await s.submit(99)
        assert 0 < caught.value.retry_after_s < 10
        s.model.gate.set()
        await asyncio.gather(first, *waiting)
        assert await s.submit(5) == [10]
        assert s.batcher.queued == 0


@scenario
async def test_a_request_is_taken_whole_or_not_at_all():
    async with Setting() as s:
        first = await s.busy()
        waiting = s.submit(*range(6))
        await asyncio.sleep(0.05)

        with pytest.raises(OverloadedError):
            await s.submit(1, 2, 3)
        assert s.batcher.queued == 6
        s.model.gate.set()
        await asyncio.gather(first, waiting)


@scenario
async def test_a_cancelled_request_is_never_decoded_and_makes_room_at_once():
    async with Setting() as s:
        first = await s.busy(0)
        task = s.submit(1, 2, 3)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert s.batcher.queued == 0
        s.model.gate.set()
        await first
        assert s.model.decoded == [0]
        assert s.dropped() == {("cancelled", "decode"): 3}


@scenario
async def test_a_request_that_is_late_is_answered_in_time_and_not_run():
    async with Setting() as s:
        first = await s.busy(0)
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            await s.submit(1, seconds=0.1)

        assert 0.09 < time.monotonic() - began < 5
        s.model.gate.set()
        await first
        assert s.model.decoded == [0]
        assert s.dropped() == {("deadline", "decode"): 1}


@scenario
async def test_what_was_decoded_and_then_cancelled_is_not_run():
    async with Setting(decoders=1) as s:
        first = await s.busy(0)
        task = s.submit(1)
        while 1 not in s.model.decoded:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        s.model.gate.set()
        await first
        await s.submit(2)

        assert [0] in s.model.batches
        assert all(1 not in batch for batch in s.model.batches)
        assert s.dropped() == {("cancelled", "inference"): 1}


@scenario
async def test_a_batch_that_fails_is_the_outcome_of_its_items_and_the_next_one_runs():
    async with Setting() as s:
        s.model.error = RuntimeError("broken")
        outcomes = await s.submit(1, 2)
        assert [str(each) for each in outcomes] == ["broken"] * 2

        s.model.error = None
        assert await s.submit(3) == [6]


@pytest.mark.parametrize("decoders", [0, 1])
def test_what_cannot_be_decoded_is_its_own_outcome_and_is_not_run(decoders):
    async def test():
        async with Setting(decoders=decoders) as s:
            return await s.submit(1, -1, 2), await s.submit(-2), s.model.batches

    (one, error, two), (alone,), batches = asyncio.run(test())

    assert (one, two) == (2, 4)
    assert isinstance(error, UndecodableImageError)
    assert isinstance(alone, UndecodableImageError)
    assert [n for batch in batches for n in batch] == [1, 2]


@scenario
async def test_a_thread_that_hangs_is_noticed():
    async with Setting() as s:
        assert s.batcher.stuck_s() == 0
        first = await s.busy()
        await asyncio.sleep(0.1)

        assert s.batcher.stuck_s() >= 0.1
        s.model.gate.set()
        await first


@scenario
async def test_no_jobs_are_no_work():
    async with Setting() as s:
        assert await s.batcher.submit([]) == []


@pytest.mark.parametrize(("decoders", "ahead"), [(0, 0), (2, 6)])
def test_no_more_is_decoded_ahead_than_two_batches_and_one_by_each_decoder(decoders, ahead):
    async def test():
        async with Setting(decoders=decoders, max_queue=100, batch_size=2) as s:
            first = await s.busy()
            waiting = s.submit(*range(1, 20))
            while len(s.model.decoded) < 1 + ahead:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            decoded = len(s.model.decoded)
            s.model.gate.set()
            await asyncio.gather(first, waiting)
        return decoded, max(map(len, s.model.batches))

    assert asyncio.run(test()) == (1 + ahead, 2)


@scenario
async def test_a_request_that_expires_while_its_batch_fills_does_not_end_the_thread():
    async with Setting(delay_s=0.2) as s:
        with pytest.raises(DeadlineError):
            await s.submit(1, seconds=0.02)
        await asyncio.sleep(0.4)

        assert await s.submit(2) == [4]
