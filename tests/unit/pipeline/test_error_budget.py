from __future__ import annotations

import math
import time

import pytest

from pipeline.dest.commits import Commit, Totals
from pipeline.error_budget import ErrorBudget, chance_of
from pipeline.progress import Progress, ProgressPrinter
from pipeline.summary import Tally


@pytest.mark.parametrize(("failed", "images", "rate"), [(3, 10, 0.1), (14, 1000, 0.005), (90, 1000, 0.05)])
def test_the_chance_is_that_of_the_binomial_distribution(failed, images, rate):
    whole = sum(math.comb(images, k) * rate**k * (1 - rate) ** (images - k) for k in range(failed, images + 1))

    assert chance_of(failed, images, rate) == pytest.approx(whole, rel=1e-6)


def test_the_chance_of_many_is_found_in_a_moment():
    assert chance_of(50_400_000, 10**9, 0.05) < 1e-200
    assert chance_of(50_010_000, 10**9, 0.05) == pytest.approx(0.0734, abs=0.001)  # 1.451 standard deviations


@pytest.mark.parametrize(
    ("rate", "images", "failed", "spent"),
    [
        pytest.param(0.05, 999, 999, False, id="before the first look"),
        pytest.param(0.05, 1000, 50, False, id="the share that is allowed"),
        pytest.param(0.05, 1000, 66, False, id="above it by chance"),
        pytest.param(0.05, 1000, 68, True, id="beyond chance"),
        pytest.param(0.05, 1000, 20, False, id="below"),
        pytest.param(0.0, 1000, 1, True, id="none is allowed"),
        pytest.param(0.0, 1000, 0, False, id="none is allowed, and none is"),
        pytest.param(1.0, 1000, 1000, False, id="all are allowed"),
    ],
)
def test_a_budget_is_spent_beyond_chance_only(rate, images, failed, spent):
    assert ErrorBudget(rate).is_spent(images, failed) is spent


def test_it_is_looked_at_when_the_images_have_doubled():
    budget = ErrorBudget(0.05)

    looks = [images for images in range(0, 20_000, 100) if budget.is_spent(images, images)]

    assert looks == [1000, 2000, 4000, 8000, 16_000]
    assert not ErrorBudget(0.05, looked_at=2000).is_spent(3900, 3900)
    assert ErrorBudget(0.05, looked_at=2000).is_spent(4000, 4000)


def test_a_run_that_was_stopped_says_why_and_how_far_it_is():
    totals = Totals()
    tally = Tally(totals, ProgressPrinter(Progress.NONE, 4, 9, totals), 0.0)
    tally.add(Commit(0, "part-00000.parquet", 1000, 900, {"undecodable": 100}, 1.0, 9, 9, "0"))

    assert tally.is_over(ErrorBudget(0.05))
    report = tally.report(output="out", model="m", precision="int8", decode="fast", units=4)

    assert (report.status, report.complete, report.units_done) == ("stopped", False, 1)
    assert report.sentences().splitlines()[:2] == [
        "stopped: 100 of the first 1000 images (10.0%) could not be labelled, more than --max-error-rate 0.05 "
        "even allowing for chance",
        "1 of 4 units are finished; the same command does the rest",
    ]


def test_a_slow_run_says_its_rate_with_a_decimal():
    totals = Totals()
    tally = Tally(totals, ProgressPrinter(Progress.NONE, 1, 9, totals), time.perf_counter() - 20)
    tally.add(Commit(0, "part-00000.parquet", 8, 8, {}, 1.0, 9, 9, "0"))

    report = tally.report(output="out", model="m", precision="int8", decode="fast", units=1)

    assert "labelled 8 images in 20.0 s (0.4 images/s) with m int8" in report.sentences()
