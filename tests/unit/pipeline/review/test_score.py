"""What answers say of all labels: against the truth of a made-up DEST, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import ConfigError, StorageError
from pipeline.evaluate.statistics import wilson
from pipeline.evaluate.thresholds import lowest_score
from pipeline.report.unit_table import while_run_goes_on
from pipeline.review.draws import Draw, DrawnRow, Stratum, read_draws, record_draw
from pipeline.review.estimate import Precision, overall, threshold
from pipeline.review.ranking import By
from pipeline.review.sample import Wanted, draw_sample
from pipeline.review.score import score_answers
from pipeline.sources.unit import part_name
from pipeline.storage.storage import open_storage
from tests.support.review_dest import made_up_rows, make_review_dest, write_true_answers


@pytest.fixture
def dest(tmp_path):
    return open_storage(str(tmp_path / "out"))


def true_precision(units, rows):
    """Return of each class how many labels there are and how many are right; and over all the share that is."""
    tables = [made_up_rows(unit, rows) for unit in range(units)]
    pairs = [(row["label_id"], int(row["key"].partition("-")[2])) for table in tables for row in table.to_pylist()]
    pairs = [(label, true) for label, true in pairs if label is not None]
    found = {label: [true == label for own, true in pairs if own == label] for label in {label for label, _ in pairs}}
    return {label: (len(own), sum(own)) for label, own in found.items()}, np.mean([a == b for a, b in pairs])


def test_precision_per_class_and_over_all_is_near_the_truth_though_half_was_drawn_for_its_doubt(dest, tmp_path):
    plan = make_review_dest(dest, 4, 3000)
    draw = draw_sample(dest, plan, Wanted(By.LOW_SCORE, 200)).draw

    found = score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", draw.shown)], 0.95)

    classes, share = true_precision(4, 3000)
    assert {one.id: one.labels for one in found.classes} == {label: size for label, (size, _) in classes.items()}
    assert (found.random, found.uncertain, found.answered, found.set_aside) == (500, 500, 1000, 0)
    for one in found.classes:
        size, right = classes[one.id]
        assert one.answered == 100
        assert (one.precision.low, one.precision.high) == wilson(one.right, 100)
        assert one.precision.low - 0.03 < right / size < one.precision.high + 0.03
    assert found.precision.low < share < found.precision.high
    assert found.precision.high - found.precision.low < 0.12
    assert found.uncertain_right / found.uncertain < share - 0.2, "the uncertain stratum alone would say far less"


def test_answers_of_an_earlier_draw_count_where_the_random_order_comes_to_its_uncertain_images(dest, tmp_path):
    """Mean over seeds of what two draws of a small DEST say, against the truth."""
    plan = make_review_dest(dest, 1, 600)
    _, share = true_precision(1, 600)
    said = []
    for seed in range(15):
        first = draw_sample(dest, plan, Wanted(By.LOW_SCORE, 40, seed)).draw
        second = draw_sample(dest, plan, Wanted(By.LOW_SCORE, 40, seed)).draw
        files = [write_true_answers(tmp_path / f"{draw.number}.csv", draw.shown) for draw in (first, second)]
        found = score_answers(dest, plan, files, 0.95)
        assert found.random == sum(row.stratum is Stratum.RANDOM for draw in (first, second) for row in draw.rows)
        said.append(found.precision.value)
        for number in (1, 2):
            dest.delete(f"_shardlabel/reviews/draw-{number:05d}.parquet")

    assert np.mean(said) == pytest.approx(share, abs=0.015)


def test_the_first_of_two_draws_alone_does_not_move_the_estimate(dest, tmp_path):
    """The second draw's random order has come to images that the first showed for their uncertainty."""
    plan = make_review_dest(dest, 1, 600)
    _, share = true_precision(1, 600)
    said, aside = [], 0
    for seed in range(15):
        first = draw_sample(dest, plan, Wanted(By.LOW_SCORE, 60, seed)).draw
        draw_sample(dest, plan, Wanted(By.LOW_SCORE, 60, seed))
        found = score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", first.shown)], 0.95)
        said.append(found.precision.value)
        aside += found.set_aside
        for number in (1, 2):
            dest.delete(f"_shardlabel/reviews/draw-{number:05d}.parquet")

    assert aside > 0
    assert np.mean(said) == pytest.approx(share, abs=0.025)


def test_the_second_of_two_draws_alone_lacks_what_the_first_gave_out(dest, tmp_path):
    plan = make_review_dest(dest, 1, 600)
    draw_sample(dest, plan, Wanted(By.LOW_SCORE, 60))
    second = draw_sample(dest, plan, Wanted(By.LOW_SCORE, 60)).draw

    with pytest.raises(ConfigError, match=r"random answers do not represent DEST: .* give the answers of all draws"):
        score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", second.shown)], 0.95)


def test_labels_that_are_not_covered_are_counted_and_left_out(dest, tmp_path):
    plan = make_review_dest(dest, 1, 600)
    draw = draw_sample(dest, plan, Wanted(By.RANDOM, 30)).draw
    answered = [row for row in draw.shown if row.label_id in (0, 3)]

    found = score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", answered)], 0.95)

    assert [one.id for one in found.classes if one.precision] == [0, 3]
    assert found.covered == sum(one.labels for one in found.classes if one.id in (0, 3))
    assert found.labels == sum(one.labels for one in found.classes)
    weighted = sum(one.precision.value * one.labels for one in found.classes if one.precision) / found.covered
    assert found.precision.value == pytest.approx(weighted)


def test_a_class_with_few_answers_has_the_threshold_of_all(dest, tmp_path):
    plan = make_review_dest(dest, 2, 3000)
    draw = draw_sample(dest, plan, Wanted(By.RANDOM, 300)).draw
    some = [row for row in draw.shown if row.label_id != 1] + [row for row in draw.shown if row.label_id == 1][:15]

    found = score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", some)], 0.9)

    by_id = {one.id: one for one in found.classes}
    assert found.pooled is not None
    assert 0.4 < found.pooled.score < 0.95
    assert (by_id[1].threshold.is_pooled, by_id[1].threshold.score) == (True, found.pooled.score)
    assert not any(by_id[i].threshold.is_pooled for i in (0, 2, 3, 4) if by_id[i].threshold)


def test_without_a_draw_or_an_answer_of_the_random_stratum_nothing_is_said(dest, tmp_path):
    plan = make_review_dest(dest, 1, 600)
    with pytest.raises(ConfigError, match="has no draw to score; draw one with `shardlabel review sample`"):
        score_answers(dest, plan, [tmp_path / "a.csv"], 0.95)

    draw = draw_sample(dest, plan, Wanted(By.MARGIN, 10)).draw
    unsure = [row for row in draw.shown if row.stratum is Stratum.UNCERTAIN]
    with pytest.raises(ConfigError, match="none of the 25 answers is for an image of the random stratum"):
        score_answers(dest, plan, [write_true_answers(tmp_path / "a.csv", unsure)], 0.95)


def test_a_part_that_cannot_be_read_is_an_error_and_no_other_weight(dest, tmp_path):
    plan = make_review_dest(dest, 1, 300)
    draw = draw_sample(dest, plan, Wanted(By.RANDOM, 10)).draw
    answers = write_true_answers(tmp_path / "a.csv", draw.shown)
    grown = make_review_dest(dest, 1, 300, before=plan)
    dest.write_bytes(part_name(1), dest.read_bytes(part_name(1))[:100])

    with pytest.raises(StorageError, match=r"part-00001.parquet .* the classes' shares are not those of DEST"):
        score_answers(dest, grown, [answers], 0.95)


def test_records_that_a_run_merges_meanwhile_are_read_again():
    calls = []

    def look():
        calls.append(1)
        if len(calls) == 1:
            raise StorageError("cannot read commits-1") from FileNotFoundError()
        return "found"

    assert while_run_goes_on(look) == "found"


def test_draws_come_back_as_they_were_recorded(dest):
    plan = make_review_dest(dest, 1, 50)
    rows = (DrawnRow(0, 7, "a/ü.tar", "k\n1", 3, 0.25, Stratum.RANDOM, False, "crane"),)
    draw = Draw(1, By.ENTROPY, 9, 2**63 - 1, plan.id, 1, rows)

    assert record_draw(dest, draw)

    assert read_draws(dest, plan)[0] == [draw]


def test_overall_weighs_classes_by_their_labels_and_is_never_sure_of_few():
    found = overall([(20, 20, 300), (5, 10, 100)])

    assert found.value == 0.875
    assert found.low < 0.875 - 0.05
    assert found.high > 0.875 + 0.03
    alone = overall([(9, 10, 7)])
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.9, *wilson(9, 10)))
    assert overall([(5, 5, 9), (5, 5, 9)]) == Precision(1.0, *wilson(10, 10))
    assert overall([(0, 5, 9), (0, 5, 9)]) == Precision(0.0, *wilson(0, 10))


@pytest.mark.parametrize(
    ("truth", "sizes", "answered"),
    [
        pytest.param([0.99, 0.9, 0.8, 0.6, 0.97], [500, 300, 100, 80, 20], 15, id="few classes"),
        pytest.param([0.7, 0.8, 0.9, 0.99] * 50, [4, 3, 2, 1] * 50, 1, id="an answer of each class"),
        pytest.param([0.6] + [0.97] * 20, [20] + [1] * 20, 30, id="one large class"),
    ],
)
def test_the_interval_over_classes_holds_the_truth_as_often_as_it_says(truth, sizes, answered):
    share = float(np.dot(truth, sizes) / np.sum(sizes))
    drawn = np.random.default_rng(1).binomial(answered, truth, (1500, len(truth)))

    held = 0
    for rights in drawn.tolist():
        found = overall([(right, answered, size) for right, size in zip(rights, sizes, strict=True)])
        held += found.low <= share <= found.high

    assert 0.925 < held / len(drawn) < 0.99


def answers_of(*groups: tuple[float, int, int, float]) -> list[tuple[float, bool, float]]:
    """Return so many right and wrong answers of a score and a weight."""
    return [(score, n < right, weight) for score, right, wrong, weight in groups for n in range(right + wrong)]


def test_a_threshold_is_the_lowest_score_that_shows_the_precision():
    answers = answers_of((0.9, 52, 0, 1.0), (0.8, 40, 0, 1.0), (0.7, 30, 8, 1.0), (0.6, 10, 0, 1.0))

    found = threshold(answers, 0.95)

    assert (found.score, found.images, found.precision) == (0.8, 92, 1.0)
    assert threshold(answers, 0.9).score == 0.6, "those of one score go together"
    assert threshold(answers_of((0.9, 51, 0, 1.0)), 0.95) is None, "51 right answers do not show it"
    assert threshold(answers_of((0.9, 60, 0, 1.0)), 0.95).score == 0.9
    assert threshold([], 0.5) is None


def test_what_is_right_in_large_classes_counts_for_more_and_a_few_heavy_answers_show_little():
    large_and_wrong = answers_of((0.9, 80, 0, 1.0), (0.9, 0, 5, 20.0))
    few_heavy = answers_of((0.9, 3, 0, 1000.0), (0.8, 60, 0, 1.0))

    assert threshold(large_and_wrong, 0.9) is None
    assert threshold(answers_of((0.9, 80, 5, 1.0)), 0.85) is not None
    assert threshold(few_heavy, 0.95) is None


def test_a_threshold_keeps_its_promise_and_is_that_of_a_calibration():
    rng = np.random.default_rng(5)
    kept = found_any = 0
    for _ in range(300):
        scores = np.round(rng.random(400), 3)
        right = rng.random(400) < 0.6 + 0.4 * scores
        found = threshold([(*one, 1.0) for one in zip(scores.tolist(), right.tolist(), strict=True)], 0.9)
        fitted = lowest_score(scores, right, 0.9).threshold
        assert (None if found is None else found.score) == (None if fitted is None else pytest.approx(fitted, abs=2e-6))
        if found is not None:
            found_any += 1
            kept += 0.6 + 0.4 * (found.score + 1) / 2 >= 0.9  # the mean over what is above

    assert found_any > 200
    assert kept / found_any > 0.9
