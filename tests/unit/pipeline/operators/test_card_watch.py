from __future__ import annotations

import pytest

from pipeline.operators.batching import Load
from pipeline.operators.model_pool import Report, Watch
from pipeline.session.stage_clock import Stage, StageClock

NOTHING = dict.fromkeys(Stage, 0.0)


def report(at_s: float, busy_s: float, images: int, notes: tuple[str, ...] = (), **spent: float) -> Report:
    return Report(
        Load(at_s, busy_s, images, images // 100), {**NOTHING, **{Stage[k]: v for k, v in spent.items()}}, notes
    )


def said(*turns: dict[int, Report]) -> list[str]:
    watch = Watch([], say=lambda text: None, decoders=16)
    return [text for turn in turns for text in watch.judge(turn)]


@pytest.mark.parametrize(
    ("spent", "stage", "remedy"),
    [
        pytest.param({"READ": 9, "DECODE": 3}, "reading", "faster storage", id="read"),
        pytest.param({"READ": 1, "DECODE": 12}, "decoding", "more CPUs", id="decode"),
        pytest.param({"DECODE": 2, "WRITE": 12}, "writing", "storage at the output", id="write"),
        pytest.param({"DECODE": 2, "LABEL": 12}, "labelling", "the network", id="label"),
    ],
)
def test_an_idle_gpu_is_said_with_the_stage_that_starves_it(spent, stage, remedy):
    [text] = said({0: report(0, 0, 100)}, {0: report(10, 2, 2000, **spent)})

    assert f"busy 20% of the time, and wait for {stage} (of the 16 decoders' time:" in text
    assert remedy in text


def test_it_is_said_once():
    turns = [{0: report(10 * turn, turn, 100 + 1000 * turn, DECODE=turn)} for turn in range(5)]

    assert len(said(*turns)) == 1


def test_a_busy_gpu_a_new_gpu_and_a_gpu_at_rest_are_not_worth_a_word():
    assert not said({0: report(0, 0, 100)}, {0: report(10, 9, 9000, DECODE=1)})
    assert not said({0: report(0, 0, 0)}, {0: report(10, 1, 900, DECODE=1)})
    assert not said({0: report(0, 0, 900)}, {0: report(10, 0, 900)})
    assert not said({0: report(50, 9, 900)}, {0: report(10, 0, 20, DECODE=1)})


def test_a_halved_batch_is_said_once():
    turns = [{0: report(10 * turn, 10 * turn, 100 * turn, notes=("batches are halved",))} for turn in range(4)]

    assert said(*turns) == ["shardlabel: warning: batches are halved"]


def test_the_clock_counts_nested_stages_apart():
    clock = StageClock()
    inner = clock.timed(Stage.READ, iter(range(3)), within=Stage.DECODE)

    assert list(clock.timed(Stage.DECODE, (value for value in inner))) == [0, 1, 2]
    clock.add(Stage.READ, 5.0)
    clock.add(Stage.DECODE, 1.0)

    taken = clock.take()
    assert taken[Stage.READ] == pytest.approx(5, abs=0.1)
    assert taken[Stage.DECODE] == pytest.approx(1, abs=0.1)
    assert all(seconds == 0 for seconds in clock.take().values())
