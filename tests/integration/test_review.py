"""`shardlabel review` as a user runs it: on real photographs with their true classes, and on a DEST in an object store."""

from __future__ import annotations

import csv
import json
import tarfile
import threading

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError
from models.spec import Precision
from pipeline.evaluate.statistics import wilson
from pipeline.review.draws import read_draws
from pipeline.review.ranking import By
from pipeline.review.sample import Wanted, draw_sample
from tests.support.review_dest import make_review_dest, write_true_answers
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import colour_shards


def run(*words):
    """Run the command; return its output, and the JSON of its last line where there is any."""
    done = CliRunner().invoke(build_app(), ["review", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return (json.loads(done.stdout.splitlines()[-1]) if "--json" in words else None), done.output


def read_list(folder):
    with (folder / "answers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def true_classes(folder):
    """Return the true class of each sample of the tars, from their .cls members."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".cls"):
                    found[path.name, member.name[:-4]] = tar.extractfile(member).read().decode().strip()
    return found


def answer(folder, truth):
    """Fill in the column `label` of a draw's list, as a reviewer who knows every class would."""
    rows = read_list(folder)
    with (folder / "answered.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": truth[row["shard"], row["key"]]} for row in rows)
    return folder / "answered.csv"


@pytest.mark.data
@pytest.mark.slow
def test_precision_of_real_labels_is_the_truth_and_no_image_comes_twice(sample_data, tmp_path):
    (tmp_path / "in").mkdir()
    for path in sample_data.glob("*.tar"):
        (tmp_path / "in" / path.name).symlink_to(path)
    dest = make_dest(tmp_path, "efficientnet-lite0", precision=Precision.INT8)
    truth = true_classes(sample_data)

    first, _ = run("sample", dest.root, "--per-class", 1, "--output", tmp_path / "a", "--json")
    second, _ = run("sample", dest.root, "--per-class", 1, "--output", tmp_path / "b", "--to", "csv", "--json")
    score, _ = run("score", dest.root, answer(tmp_path / "a", truth), answer(tmp_path / "b", truth), "--json")

    places = [{(row["shard"], row["key"]) for row in read_list(tmp_path / name)} for name in "ab"]
    assert places[0].isdisjoint(places[1])
    assert [len(one) for one in places] == [first["images"], second["images"]]
    assert first["missing"] == 0
    assert len(list((tmp_path / "a").glob("*/*.jpg"))) == first["images"]
    # All 500 images are in one of the two draws: what is said is what is so.
    predicted = {(r.shard, r.key): r.label_id for d in read_draws(dest, _plan(dest))[0] for r in d.rows}
    right = {place: int(truth[place]) == label_id for place, label_id in predicted.items()}
    assert len(right) == score["random"] == score["labels"] == 500
    assert score["precision"] == pytest.approx(100 * sum(right.values()) / 500)
    assert score["interval"][0] < score["precision"] < score["interval"][1]
    for one in score["classes"]:
        own = [is_right for place, is_right in right.items() if predicted[place] == one["id"]]
        assert (one["labels"], one["right"]) == (len(own), sum(own))
        assert one["precision"] == pytest.approx(100 * sum(own) / len(own), abs=0.001)
        assert one["interval"] == pytest.approx([100 * bound for bound in wilson(sum(own), len(own))], abs=0.001)


def _plan(dest):
    from pipeline.dest.plan import open_plan

    return open_plan(dest)


def test_what_a_user_reads_from_draw_to_score(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=12)
    dest = make_dest(tmp_path, tiny_model)

    _, said = run("sample", dest.root, "--per-class", 4, "--output", tmp_path / "a")
    assert "draw 1: 12 images of 3 classes, 6 at random and 6 by margin" in said
    assert f"open {tmp_path}/a/index.html" in said

    answers = tmp_path / "answers.csv"
    rows = read_list(tmp_path / "a")
    lines = [f"{row['shard']},{row['key']},{row['predicted']}" for row in rows[1:]]
    answers.write_text("\n".join(["shard,key,label", f"{rows[0]['shard']},{rows[0]['key']},none", *lines]))
    _, said = run("score", dest.root, answers)
    assert "precision 83.3 %" in said
    assert "from 6 random answers" in said
    assert "of the uncertain images 6 of 6 are right" in said

    _, said = run("sample", dest.root, "--per-class", 100, "--to", "csv", "--output", tmp_path / "b")
    assert "draw 2: 12 images" in said
    _, said = run("sample", dest.root, "--output", tmp_path / "c")
    assert "nothing is left to draw: earlier draws had all 24 labelled images" in said
    assert not (tmp_path / "c").exists()

    found, _ = run("sample", dest.root, "--again", 1, "--output", tmp_path / "d", "--json")
    assert (found["draw"], found["images"]) == (1, 12)
    assert read_list(tmp_path / "d") == rows


def test_what_is_not_finished_is_said_and_drawn_from_later(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=6)
    dest = make_dest(tmp_path, tiny_model, finish=1)

    found, said = run("sample", dest.root, "--per-class", 100, "--to", "csv", "--output", tmp_path / "a", "--json")

    assert "units of DEST that are not finished, and not drawn from: 1" in said
    assert (found["images"], {row["shard"] for row in read_list(tmp_path / "a")}) == (6, {"shard-000.tar"})


def test_pictures_that_are_gone_are_said_and_the_draw_can_be_written_again(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2, samples=6)
    dest = make_dest(tmp_path, tiny_model)
    shard = tmp_path / "in" / "shard-001.tar"
    aside = shard.rename(tmp_path / "aside.tar")

    found, said = run("sample", dest.root, "--per-class", 100, "--output", tmp_path / "a", "--json")
    assert found["missing"] == 6
    assert "6 of 12 pictures could not be read, see" in said

    aside.rename(shard)
    found, _ = run("sample", dest.root, "--again", 1, "--output", tmp_path / "b", "--json")
    assert found["missing"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "{dest}", "a.csv", "--precision-target", "0.95"], "is in percent, expected above 1 and below 100"),
        (
            ["sample", "{dest}", "--output", "x", "--again", "3"],
            "--again must be a draw of DEST, got 3; there are none",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, tiny_model, words, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colour_shards(tmp_path / "in", shards=1)
    dest = make_dest(tmp_path, tiny_model)

    with pytest.raises(ConfigError, match=said):
        run(*(word.format(dest=dest.root) for word in words))


def test_a_dest_in_an_object_store_is_drawn_from_by_two_at_once(place, tmp_path):
    plan = make_review_dest(place.storage, 3, 200)
    threads = [threading.Thread(target=draw_sample, args=(place.storage, plan, Wanted(By.ENTROPY, 6))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    draws, _ = read_draws(place.storage, plan)
    shown = [(row.unit, row.position) for draw in draws for row in draw.shown]
    assert [draw.number for draw in draws] == [1, 2]
    assert len(shown) == len(set(shown)) == 60
    assert "_shardlabel/reviews/draw-00002.parquet" in place.names()
    files = [write_true_answers(tmp_path / f"{draw.number}.csv", draw.shown) for draw in draws]
    score, _ = run("score", place.uri, *files, "--json")
    assert (score["answered"], score["draws"]) == (60, [1, 2])
