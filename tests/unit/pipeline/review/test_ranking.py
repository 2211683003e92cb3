"""The two orders, and the lowest rows of each class in either."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import ConfigError
from pipeline.review import ranking
from pipeline.review.ranking import CANDIDATE, By, LowestPerClass, random_order, uncertainty_rank


def candidates(rng, count, classes=5):
    rows = np.zeros(count, CANDIDATE)
    rows["label_id"] = rng.integers(0, classes, count)
    rows["rank"] = rng.integers(0, 50, count) / 50  # many are equal
    rows["order"] = rng.permutation(count)
    rows["position"] = np.arange(count)
    return rows


def by_hand(rows, count):
    kept = []
    for label_id in sorted(set(rows["label_id"].tolist())):
        own = [row for row in rows.tolist() if row[0] == label_id]
        kept += sorted(own, key=lambda row: (row[1], row[2]))[:count]
    return kept


@pytest.mark.parametrize("loose", [1, 40, 10**6])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_the_lowest_are_those_of_a_full_sort_however_the_rows_come(monkeypatch, loose, count):
    monkeypatch.setattr(ranking, "LOOSE_ROWS", loose)
    rows = candidates(np.random.default_rng(0), 1000)

    found = LowestPerClass(count)
    for piece in np.array_split(rows, 37):
        found.add(piece)

    assert found.rows().tolist() == by_hand(rows, count)


def test_memory_is_that_of_the_rows_that_are_kept(monkeypatch):
    monkeypatch.setattr(ranking, "LOOSE_ROWS", 100)
    rng = np.random.default_rng(0)
    found = LowestPerClass(3)

    for _ in range(200):
        found.add(candidates(rng, 500))
        assert len(found._kept) + found._num_loose <= 600

    assert len(found.rows()) == 15


def test_uncertainty_ranks_the_least_sure_lowest():
    scores = np.array([[0.9, 0.05, 0.05], [0.5, 0.49, 0.01], [0.4, 0.3, 0.3]], np.float32)

    assert uncertainty_rank(By.MARGIN, scores) == pytest.approx([0.85, 0.01, 0.1], abs=1e-6)
    assert uncertainty_rank(By.LOW_SCORE, scores) == pytest.approx([0.9, 0.5, 0.4])
    by_entropy = uncertainty_rank(By.ENTROPY, scores)
    assert np.argsort(by_entropy).tolist() == [2, 1, 0]
    assert uncertainty_rank(By.ENTROPY, np.array([[0.1, 0.1], [1.0, 0.0]], np.float32)) == pytest.approx([-1, 0])


@pytest.mark.parametrize("by", [By.MARGIN, By.ENTROPY])
def test_one_score_a_row_is_too_few_to_compare(by):
    with pytest.raises(ConfigError, match=r"expected 2 or more, but DEST has 1; give --by low-score"):
        uncertainty_rank(by, np.ones((4, 1), np.float32))


def test_the_random_order_is_even_and_depends_on_seed_unit_and_position():
    places = np.arange(100_000)
    order = random_order(0, 3, places)

    assert len(set(order.tolist())) == len(places)
    assert (order == random_order(0, 3, places)).all()
    for other in (random_order(1, 3, places), random_order(0, 4, places)):
        assert abs(np.corrcoef(order / 2**64, other / 2**64)[0, 1]) < 0.02
        assert not (order == other).any()
    # 1000 rows in each of 100 bins, give or take 5 standard deviations.
    assert np.abs(np.histogram(order / 2**64, 100, (0, 1))[0] - 1000).max() < 160
    assert abs(np.corrcoef(order[:-1] / 2**64, order[1:] / 2**64)[0, 1]) < 0.02
