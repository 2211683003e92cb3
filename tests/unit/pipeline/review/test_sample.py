"""What a draw takes of DEST, and that no later one takes it again."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.errors import ConfigError, SourceError, StorageError
from pipeline.dest.plan import open_plan, write_plan
from pipeline.review import sample
from pipeline.review.draws import Stratum, draw_file, read_draws, record_draw
from pipeline.review.ranking import By, random_order
from pipeline.review.sample import Wanted, draw_sample
from pipeline.sources.unit import Slice, Unit, part_name
from pipeline.storage.storage import open_storage
from tests.support.review_dest import make_review_dest, truth_of


@pytest.fixture
def dest(tmp_path):
    return open_storage(str(tmp_path / "out"))


def labelled(dest, plan):
    """Return (unit, position, class, score, margin) of every labelled row, read the simple way."""
    found = []
    for unit in range(plan.units):
        rows = pq.read_table(dest.path(part_name(unit))).to_pylist()
        found += [
            (unit, position, row["label_id"], row["score"], row["top_scores"][0] - row["top_scores"][1])
            for position, row in enumerate(rows)
            if row["status"] == "ok"
        ]
    return found


def places(rows, stratum=None):
    return {(row.unit, row.position) for row in rows if stratum in (None, row.stratum)}


def test_a_draw_takes_of_each_class_half_at_random_and_half_by_the_smallest_margin(dest):
    plan = make_review_dest(dest, 4, 500, group=64)

    draw = draw_sample(dest, plan, Wanted(By.MARGIN, 7)).draw

    everything = labelled(dest, plan)
    for label_id in range(5):
        own = [row for row in everything if row[2] == label_id]
        drawn = [row for row in draw.rows if row.label_id == label_id]
        at_random = sorted(own, key=lambda row: random_order(0, row[0], np.array([row[1]]))[0])[:4]
        others = sorted((row for row in own if row not in at_random), key=lambda row: row[4])[:3]
        assert places(drawn, Stratum.RANDOM) == {row[:2] for row in at_random}
        assert places(drawn, Stratum.UNCERTAIN) == {row[:2] for row in others}
        assert [row.stratum.value for row in drawn] == ["random"] * 4 + ["uncertain"] * 3
    scores = {row[:2]: (row[2], row[3]) for row in everything}
    assert all(scores[row.unit, row.position] == (row.label_id, row.score) for row in draw.rows)
    assert all(row.label == f"class {row.label_id}" and row.shard == f"{row.unit:05d}.tar" for row in draw.rows)
    assert all(row.key.startswith(f"{row.position:08d}-") for row in draw.rows)


def test_a_draw_is_the_same_for_a_seed_however_parts_divide_and_another_for_another(tmp_path):
    drawn = []
    for name, group, seed in (("a", 64, 0), ("b", 500, 0), ("c", 500, 1)):
        one = open_storage(str(tmp_path / name))
        plan = make_review_dest(one, 3, 500, group=group)
        drawn.append(draw_sample(one, plan, Wanted(By.ENTROPY, 6, seed)).draw.rows)

    assert drawn[0] == drawn[1]
    assert len(places(drawn[0], Stratum.RANDOM) & places(drawn[2], Stratum.RANDOM)) < 3  # of 15, by chance


@pytest.mark.parametrize("by", list(By))
def test_no_draw_has_an_image_of_another_until_all_are_drawn(dest, by):
    plan = make_review_dest(dest, 2, 60)
    everything = {row[:2] for row in labelled(dest, plan)}
    shown = []

    while (draw := draw_sample(dest, plan, Wanted(by, 5)).draw).rows:
        shown += [(row.unit, row.position) for row in draw.shown]
        of_a_class = Counter(row.label_id for row in draw.shown)
        assert max(of_a_class.values(), default=0) <= 5

    assert len(shown) == len(set(shown))
    assert set(shown) == everything
    assert draw_sample(dest, plan, Wanted(by, 5)).draw.rows == ()


def test_the_random_strata_of_several_draws_are_the_first_of_one_random_order(dest):
    plan = make_review_dest(dest, 2, 300)

    for _ in range(4):
        draw_sample(dest, plan, Wanted(By.MARGIN, 20))

    draws, next_number = read_draws(dest, plan)
    rows = [row for draw in draws for row in draw.rows]
    assert next_number == 5
    reused = [row for row in rows if not row.is_shown]
    assert reused, "the order came to no image that was drawn for its uncertainty"
    assert all(row.stratum is Stratum.RANDOM for row in reused)
    for label_id in range(5):
        own = [row[:2] for row in labelled(dest, plan) if row[2] == label_id]
        order = sorted(own, key=lambda place: random_order(0, place[0], np.array([place[1]]))[0])
        assert places([row for row in rows if row.label_id == label_id], Stratum.RANDOM) == set(order[:40])


def test_the_random_stratum_is_no_surer_than_dest_also_after_draws_of_what_is_unsure(tmp_path):
    """The mean over many seeds; leaving out what was drawn before would move it by 0.04."""
    means = []
    one = open_storage(str(tmp_path / "out"))
    plan = make_review_dest(one, 1, 400, classes=1, failed=0)
    everything = labelled(one, plan)
    for seed in range(30):
        for _ in range(3):
            draw_sample(one, plan, Wanted(By.LOW_SCORE, 80, seed))
        draws, _ = read_draws(one, plan)
        means.append(np.mean([r.score for draw in draws for r in draw.rows if r.stratum is Stratum.RANDOM]))
        for draw in draws:
            one.delete(draw_file(draw.number))

    assert np.mean(means) == pytest.approx(np.mean([row[3] for row in everything]), abs=0.006)


def test_two_draws_at_once_share_no_image(dest, monkeypatch):
    plan = make_review_dest(dest, 2, 300)
    both_looked = threading.Barrier(2)
    real, waited = sample.record_draw, set()

    def record(dest, draw):
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            both_looked.wait(20)
        return real(dest, draw)

    monkeypatch.setattr(sample, "record_draw", record)
    threads = [threading.Thread(target=draw_sample, args=(dest, plan, Wanted(By.MARGIN, 10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    draws, _ = read_draws(dest, plan)
    assert [draw.number for draw in draws] == [1, 2]
    assert places(draws[0].shown).isdisjoint(places(draws[1].shown))
    assert len(draws[0].shown) == len(draws[1].shown) == 50


def test_what_was_appended_is_drawn_from_and_it_is_said_while_the_random_strata_lag_behind(dest):
    plan = make_review_dest(dest, 1, 200)
    draw_sample(dest, plan, Wanted(By.RANDOM, 30))

    grown = make_review_dest(dest, 4, 200, before=plan)
    few = draw_sample(dest, grown, Wanted(By.RANDOM, 10))
    many = draw_sample(dest, grown, Wanted(By.RANDOM, 200))

    assert few.behind == 5
    assert {row.unit for row in few.draw.rows} - {0}
    assert many.behind == 0
    for label_id in range(5):
        own = [row[:2] for row in labelled(dest, grown) if row[2] == label_id]
        order = sorted(own, key=lambda place: random_order(0, place[0], np.array([place[1]]))[0])
        drawn = {(r.unit, r.position) for d in read_draws(dest, grown)[0] for r in d.rows if r.label_id == label_id}
        assert drawn == set(order[: len(drawn)])


def test_a_draw_of_a_run_that_was_overwritten_binds_nobody(dest):
    plan = make_review_dest(dest, 1, 50)
    first = draw_sample(dest, plan, Wanted(By.RANDOM, 100)).draw
    other = write_plan(dest, [Unit(0, (Slice("b.tar", 9, ""),))], plan.settings)

    assert read_draws(dest, other) == ([], 2)
    assert first.number == 1


def test_a_number_that_is_taken_is_not_written_over(dest):
    plan = make_review_dest(dest, 1, 50)
    draw = draw_sample(dest, plan, Wanted(By.RANDOM, 3)).draw
    before = dest.read_bytes(draw_file(1))

    assert record_draw(dest, draw) is False
    assert dest.read_bytes(draw_file(1)) == before


def test_dest_without_a_plan_or_without_labels_or_with_a_damaged_draw_is_refused(dest, tmp_path):
    with pytest.raises(SourceError, match="holds no run of shardlabel: there is no plan in it; give a folder that"):
        open_plan(open_storage(str(tmp_path)))

    plan = make_review_dest(dest, 1, 50, failed=1)
    with pytest.raises(SourceError, match="has no labelled image to draw: 50 rows, none is ok"):
        draw_sample(dest, plan, Wanted(By.MARGIN, 3))

    dest.write_bytes(draw_file(3), b"no parquet")
    with pytest.raises(ConfigError, match=r"draw-00003.parquet is damaged"):
        read_draws(dest, plan)


def test_a_part_that_cannot_be_read_is_an_error_and_no_smaller_sample(dest):
    plan = make_review_dest(dest, 3, 50)
    dest.write_bytes(part_name(1), b"PAR1 no more")

    with pytest.raises(StorageError, match=r"part-00001.parquet cannot be read"):
        draw_sample(dest, plan, Wanted(By.MARGIN, 3))


def test_one_score_a_row_is_refused_only_where_several_are_compared(dest):
    plan = make_review_dest(dest, 1, 50, top_k=1)

    with pytest.raises(ConfigError, match="but DEST has 1"):
        draw_sample(dest, plan, Wanted(By.MARGIN, 3))
    assert draw_sample(dest, plan, Wanted(By.LOW_SCORE, 3)).draw.rows


def test_the_made_up_answers_are_the_truth(dest):
    plan = make_review_dest(dest, 1, 2000)
    rows = draw_sample(dest, plan, Wanted(By.RANDOM, 10_000)).draw.rows

    right = np.mean([truth_of(row) == row.label_id for row in rows])
    assert right == pytest.approx(np.mean([row.score for row in rows]), abs=0.03)
