from __future__ import annotations

import pytest

from pipeline.operators import watch
from pipeline.session.pools import Pools
from pipeline.session.stage_clock import Stage, StageClock

POOLS = Pools((1, 1), 0, 1.0, decoders=2, batch_size=256, gpu_share=1.0)


def say_of(monkeypatch, *, read: float, decode: float, label: float, gpu_share: float = 1.0) -> list[str]:
    """Return what is said of ten seconds in which processes spent so many of them."""
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    clock, said = StageClock(), []
    looked = watch.GpuWatch(clock, Pools((1, 1), 0, 1.0, 2, 256, gpu_share), said.append)
    looked.look()
    for _ in range(2):
        for stage, seconds in ((Stage.READ, read), (Stage.DECODE, decode), (Stage.LABEL, label)):
            clock.add(stage, seconds)
        now[0] += watch.WATCH_EVERY_S
        looked.look()
    return said


@pytest.mark.parametrize(
    ("read", "decode", "reason"),
    [(2, 15, "wait for decoding"), (15, 2, "wait for reading"), (1, 1, "wait for the transfer of pixels")],
    ids=["decoding", "reading", "between"],
)
def test_a_gpu_that_idles_is_told_once_with_what_it_waits_for(monkeypatch, read, decode, reason):
    said = say_of(monkeypatch, read=read, decode=decode, label=1)

    assert len(said) == 1
    assert reason in said[0]


@pytest.mark.parametrize("more", [{"label": 6}, {"label": 1, "gpu_share": 0}], ids=["busy", "no GPU"])
def test_nothing_is_told_of_a_busy_gpu_or_of_none(monkeypatch, more):
    assert say_of(monkeypatch, read=2, decode=15, **more) == []
