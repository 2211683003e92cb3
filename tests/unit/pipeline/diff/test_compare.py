"""What two outputs differ in, against rows whose differences are known; and the page, the pictures and the messages."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError, SourceError
from pipeline.dest.finished import FinishedDest, open_finished
from pipeline.diff.compare import compare
from pipeline.diff.difference import Difference
from pipeline.diff.join import SCHEMA, Joined
from pipeline.diff.pictures import chosen_flips
from pipeline.diff.text import build_page
from pipeline.report.pictures import read_thumbnails
from tests.support.labelled_dest import label_without_ray
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar
from tests.support.tiny_variant import tiny_variant

NAMES = ("cat", "crane", "crane", "dog")


def table(rows: list[tuple[int | None, float | None]], *, unit: int = 0) -> pa.Table:
    """Return rows of class and score, of which None are not ok."""
    return pa.Table.from_pylist(
        [
            {
                "shard": "a.tar", "key": str(row), "label": None if one is None else NAMES[one], "label_id": one,
                "score": score, "status": "empty" if one is None else "ok",
                "top_ids": None if one is None else [one, (one + 1) % 4], "_unit": unit, "_row": row,
            }
            for row, (one, score) in enumerate(rows)
        ],
        SCHEMA,
    )  # fmt: skip


def difference(old: list, new: list, **options) -> Difference:
    found = Difference(**{"by_name": False, "reach": np.array([100]), **options})
    found.add(Joined(table(old), table(new), SCHEMA.empty_table(), SCHEMA.empty_table()))
    return found


def test_flips_shifts_statuses_and_top_labels_are_counted():
    found = difference(
        [(0, 0.5), (0, 0.5), (1, 0.9), (3, 0.4), (None, None), (0, 0.5)],
        [(0, 0.7), (3, 0.6), (1, 0.9), (0, 0.3), (2, 0.8), (None, None)],
    )

    assert found.both == 6
    assert found.pairs == {(0, 0): 1, (0, 3): 1, (1, 1): 1, (3, 0): 1}
    assert found.statuses == {("ok", "ok"): 4, ("empty", "ok"): 1, ("ok", "empty"): 1}
    assert found.same_top == 2
    assert found.shifts == pytest.approx({0: 0.2 + 0.1, 1: 0.0, 3: -0.1}, abs=1e-6)
    assert found.shift_size == pytest.approx(0.4, abs=1e-6)
    assert [found.quantile(share) for share in (0.01, 0.5, 1.0)] == [-0.1, 0.0, 0.2]
    assert [(flip.position, flip.old_label, flip.new_label) for flip in found.flips[0, 3]] == [(1, "cat", "dog")]
    assert found.label_names() == {0: "cat", 1: "crane", 3: "dog"}


def test_two_classes_of_one_name_are_two_classes_unless_names_are_compared():
    by_id = difference([(1, 0.5)], [(2, 0.5)])
    assert (by_id.pairs, by_id.label_names()) == ({(1, 2): 1}, {1: "crane (1)", 2: "crane (2)"})

    by_name = difference([(1, 0.5)], [(2, 0.5)], by_name=True)
    assert (by_name.pairs, by_name.same_top) == ({(0, 0): 1}, None)


def test_flips_are_remembered_within_reach_and_few_of_a_pair():
    found = difference([(0, 0.5)] * 50, [(3, 0.5)] * 50, reach=np.array([7]))
    assert [flip.position for flip in found.flips[0, 3]] == list(range(7))
    assert len(difference([(0, 0.5)] * 50, [(3, 0.5)] * 50).flips[0, 3]) == 10


def test_bins_of_shifts_hold_every_row_and_lie_around_zero():
    bins = difference([(0, 0.5)] * 3, [(0, 0.6), (0, 0.5), (0, 0.2)]).shift_bins(4)

    assert sum(images for _, _, images in bins) == 3
    assert (bins[0][0], bins[-1][1]) == pytest.approx((-0.3, 0.3), abs=1e-3)


@pytest.fixture
def dests(tmp_path: Path, tiny_model: Path) -> tuple[Path, Path]:
    """Return two outputs, of which the second calls the weakest channel the best."""
    colour_shards(tmp_path / "in", shards=2, samples=6)
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    label_without_ray(tmp_path / "in", tmp_path / "new", tiny_variant(tiny_model, tmp_path / "m", -3.0))
    return tmp_path / "old", tmp_path / "new"


def run(*words: object) -> tuple[int, list[str], str]:
    done = CliRunner().invoke(build_app(), ["diff", *map(str, words)])
    return done.exit_code, done.stdout.splitlines(), str(done.exception or "")


def test_the_command_prints_tables_json_a_page_and_pictures(dests, tmp_path):
    old, new = dests

    code, lines, _ = run(old, new, "--json", "--output", tmp_path / "page.html", "--examples", tmp_path / "flips")

    found = json.loads(lines[-1])
    assert code == 0
    assert (found["rows_old"], found["both"], found["same_label"], found["flipped"], found["agreement"]) == (
        12,
        12,
        0,
        12,
        0,
    )
    assert found["flips"][0].keys() == {"old_label", "new_label", "old_id", "new_id", "images"}
    assert any(line.startswith("0 % of 12 labelled rows have the same label, 12 another one") for line in lines)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64") == 12
    with (tmp_path / "flips/flips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        assert (tmp_path / "flips" / row["file"]).read_bytes() == colour_jpeg(row["old_label"])
    assert run(old, new, "--examples", tmp_path / "flips")[2].startswith("--examples ")


def test_nothing_differs_from_itself(dests):
    code, lines, _ = run(dests[0], dests[0], "--json")

    assert (code, json.loads(lines[-1])["agreement"], json.loads(lines[-1])["flips"]) == (0, 100, [])


def test_a_page_escapes_what_rows_hold_and_says_what_pictures_are_missing(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    evil = "<script>alert(1)</script>"
    write_tar(tmp_path / "in/a.tar", {f"{evil}.jpg": colour_jpeg("red")})
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    label_without_ray(tmp_path / "in", tmp_path / "new", tiny_variant(tiny_model, tmp_path / "m", -3.0))
    found = compare(str(tmp_path / "old"), str(tmp_path / "new"))

    def pictures():
        flips = list(chosen_flips(found.flips))
        return flips, *read_thumbnails(found.source.dest, found.source.plan, found.source.metadata, flips)

    page = build_page(found, *pictures())

    assert evil not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/jpeg;base64") == 1
    was = (tmp_path / "in/a.tar").stat()
    write_tar(tmp_path / "in/a.tar", {f"{evil[:-1]}x.jpg": colour_jpeg("red")})
    os.utime(tmp_path / "in/a.tar", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert pictures()[2] == ["a.tar: it is no longer in its shard", "1 of 1 pictures are missing"]
    (tmp_path / "in/a.tar").unlink()
    assert "1 of 1 pictures are missing" in build_page(found, *pictures())


def test_outputs_without_a_row_in_common_are_refused(dests, tmp_path, tiny_model):
    (tmp_path / "elsewhere").mkdir()
    write_tar(tmp_path / "elsewhere/x.tar", {"x.jpg": colour_jpeg("red")})
    label_without_ray(tmp_path / "elsewhere", tmp_path / "other", tiny_model)

    with pytest.raises(SourceError, match=r"have no row in common by shard and key.*in and .*elsewhere"):
        compare(str(dests[0]), str(tmp_path / "other"))
    with pytest.raises(SourceError, match="holds no run of shardlabel"):
        compare(str(dests[0]), str(tmp_path / "in"))


def test_names_of_classes_and_their_synsets_are_not_compared(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=1)
    for name in ("old", "new"):
        label_without_ray(tmp_path / "in", tmp_path / name, tiny_model)
    texts = {"old": "name", "new": "wnid"}

    def finished(location: str, *, logs: bool) -> FinishedDest:
        found, text = open_finished(location), texts[Path(location).name]
        return replace(found, plan=replace(found.plan, settings={"labels": text, "class names": text}))

    monkeypatch.setattr("pipeline.diff.compare.open_finished", finished)

    with pytest.raises(
        ConfigError, match=r"old writes a class's name as label, and .*new its wnid, so no label would be the same"
    ):
        compare(str(tmp_path / "old"), str(tmp_path / "new"))
