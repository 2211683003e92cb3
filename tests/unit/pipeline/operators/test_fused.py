"""Several units at a time in one actor: what waits for its turn to compute."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from pipeline.operators.fused import DecodingTurn
from pipeline.session.stage_clock import Stage, StageClock

WAIT_S = 0.5


def test_waiting_for_a_turn_is_not_counted_as_decoding() -> None:
    clock, lock = StageClock(), threading.Lock()
    turn = DecodingTurn(lock, clock)
    held: list[bool] = []

    def images() -> Iterator[int]:
        with turn:
            held.append(lock.locked())
        yield 1

    lock.acquire()
    threading.Timer(WAIT_S, lock.release).start()

    assert list(clock.timed(Stage.DECODE, images())) == [1]
    assert held == [True]
    assert 0 <= clock.total()[Stage.DECODE] < WAIT_S / 2
    assert not lock.locked()
