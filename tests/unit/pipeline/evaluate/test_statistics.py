from __future__ import annotations

from math import comb

import numpy as np
import pytest

from pipeline.evaluate.statistics import Reliability, mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        # From the formula by hand: z = 1.96 gives (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²).
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (35_000, 50_000, 0.6960, 0.7040),
    ],
)
def test_wilson_gives_the_known_intervals(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=5e-5)


def test_wilson_knows_nothing_of_no_images():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (5, 6), (1, 9), (3, 40), (20, 20)])
def test_mcnemar_is_the_two_sided_binomial_test(b, c):
    n = b + c
    tail = sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n

    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_mcnemar_of_very_many_images_is_finite():
    assert 0 < mcnemar(500_000, 501_000) < 1


def test_calibration_error_is_the_mean_distance_of_score_and_rate():
    calibration = Reliability()
    calibration.add(np.float32([0.9, 0.9, 0.9, 0.9]), np.array([True, True, False, False]))
    calibration.add(np.float32([0.1, 1.0]), np.array([False, True]))

    # Four images claim 0.9 and reach 0.5; one claims 0.1 and is wrong; one claims 1.0 and is right.
    assert calibration.error == pytest.approx((4 * 0.4 + 0.1 + 0.0) / 6, abs=1e-6)
    assert calibration.mean_score == pytest.approx((3.6 + 0.1 + 1.0) / 6, abs=1e-6)
    assert [bin["images"] for bin in calibration.bins()] == [1, 4, 1]
