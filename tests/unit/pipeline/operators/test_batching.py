from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.errors import InferenceError
from models.inference.classifier import Predictions
from pipeline.operators.batching import Batcher


class Slow:
    """Labels an image by its first value; notes the sizes of its batches, and waits where it is told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def predict(self, images, *, probabilities=False, embedding=False):
        with self._lock:
            self.sizes.append(len(images))
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        self.gate.wait(10)
        with self._lock:
            self.running -= 1
        if (images == 255).any():
            raise InferenceError("one of these cannot be labelled")
        ids = images[:, 0, 0, :1].astype(np.int32)
        return Predictions(ids, ids.astype(np.float32), embedding=ids.astype(np.float32) if embedding else None)


def block(first: int, count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))


@pytest.fixture
def slow():
    return Slow()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_caller_gets_the_labels_of_its_own_images(slow):
    batcher = Batcher(slow, batch_size=16, in_flight=3, embedding=True)
    blocks = [block(first, 1 + first % 40) for first in range(0, 200, 3)]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(batcher.predict, blocks))

    for images, found in zip(blocks, answers, strict=True):
        assert found.label_ids[:, 0].tolist() == images[:, 0, 0, 0].tolist()
        assert found.embedding is not None
        assert found.embedding[:, 0].tolist() == images[:, 0, 0, 0].tolist()
    assert max(slow.sizes) <= 16
    assert batcher.load().images == sum(map(len, blocks)) == sum(slow.sizes)
    batcher.close()


def test_a_lonely_block_does_not_wait_for_others(slow):
    batcher = Batcher(slow, batch_size=256, in_flight=3)

    started = time.monotonic()
    batcher.predict(block(0, 5))

    assert time.monotonic() - started < 0.5
    assert slow.sizes == [5]
    batcher.close()


def test_blocks_that_wait_fill_a_batch_together_and_are_split_where_they_do_not_fit(slow):
    batcher = Batcher(slow, batch_size=10, in_flight=1)
    slow.gate.clear()

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(batcher.predict, block(0, 1))]
        wait_until(lambda: slow.sizes == [1])
        answers += [pool.submit(batcher.predict, block(first, 7)) for first in (10, 20, 30)]
        wait_until(lambda: batcher._num_waiting == 21)
        slow.gate.set()
        found = [answer.result(5) for answer in answers]

    assert slow.sizes == [1, 10, 10, 1]
    assert [len(each.label_ids) for each in found] == [1, 7, 7, 7]
    batcher.close()


def test_only_full_batches_are_sent_ahead(slow):
    batcher = Batcher(slow, batch_size=10, in_flight=3)
    slow.gate.clear()

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(batcher.predict, block(0, 4))]
        wait_until(lambda: slow.sizes == [4])
        answers.append(pool.submit(batcher.predict, block(10, 6)))
        time.sleep(0.05)
        assert slow.sizes == [4]
        answers.append(pool.submit(batcher.predict, block(20, 6)))
        wait_until(lambda: slow.sizes == [4, 10])
        slow.gate.set()
        for answer in answers:
            answer.result(5)

    assert slow.most_running == 2
    batcher.close()


def test_an_error_reaches_every_caller_of_the_batch_and_the_next_batch_goes_on(slow):
    batcher = Batcher(slow, batch_size=8, in_flight=2)

    with pytest.raises(InferenceError, match="cannot be labelled"):
        batcher.predict(block(250, 6))

    assert batcher.predict(block(1, 2)).label_ids[:, 0].tolist() == [1, 2]
    batcher.close()


def test_busy_seconds_are_those_with_a_batch_in_it(slow):
    batcher = Batcher(slow, batch_size=8, in_flight=2)
    before = batcher.load()
    slow.gate.clear()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(batcher.predict, block(1, 2))
        time.sleep(0.2)
        assert batcher.load().busy_s - before.busy_s > 0.1
        slow.gate.set()
        answer.result(5)
    time.sleep(0.2)

    after = batcher.load()
    assert 0.15 < after.busy_s - before.busy_s < after.at_s - before.at_s - 0.1
    batcher.close()
