"""A prediction log as `report`, `verify` and `diff` read it, and what refuses it."""

from __future__ import annotations

from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError, SourceError
from pipeline.config import LabelConfig
from pipeline.dest.finished import open_finished
from pipeline.dest.plan import read_plan
from pipeline.dest.prediction_log import begin_log, open_records
from pipeline.dest.verify import verify_dest
from pipeline.diff.compare import compare
from pipeline.job import run
from pipeline.report.findings import gather
from pipeline.report.page import write_report
from pipeline.storage.storage import open_storage
from tests.support.labelled_dest import label_without_ray
from tests.support.made_up_log import add_part
from tests.support.tiny_model import colour_jpeg, colour_shards


def test_a_report_counts_its_rows(tmp_path):
    add_part(tmp_path / "log", [("a", 0), ("b", 1), ("a", 0)])
    dest = add_part(tmp_path / "log", [("c", None), ("a", 0)])

    found = gather(dest)

    assert found.sentence() == "5 images: 4 ok, 1 undecodable; 2 of 2 units are finished"
    assert found.counts.labels == {0: ("cat", 3), 1: ("dog", 1)}
    assert [row.error for row in found.examples["undecodable"]] == ["cut off"]
    assert found.plan.settings["model"] == "m"
    assert found.units.images_over_time(3) is not None
    assert found.sheet.problems == ["SOURCE cannot be read: a prediction log keeps no images"]
    assert "5 images" in write_report(str(tmp_path / "log"), str(tmp_path / "page.html"))


def test_verify_reads_every_part_and_finds_what_is_no_part(tmp_path):
    dest = add_part(tmp_path, [("a", 0), ("a", 0)])
    add_part(tmp_path, [("b", 1)])
    assert (verify_dest(dest).ok, verify_dest(dest).rows) == (True, 3)

    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    (part, *_) = sorted(tmp_path.glob("part-*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + bytes(len(whole) // 3) + whole[4 + len(whole) // 3 :])
    faults = verify_dest(dest).faults

    assert len(faults) == 2
    assert part.name in faults[0]
    assert "mine.parquet: is not a part file of a prediction log" in faults[1]


def test_the_last_answer_for_an_image_is_compared(tmp_path):
    add_part(tmp_path / "old", [("a", 0), ("b", 1), ("only", 1)], model="first")
    add_part(tmp_path / "old", [("a", 2)], model="first")
    add_part(tmp_path / "new", [("b", 0), ("a", 2), ("b", 2)], model="second")

    found = compare(str(tmp_path / "old"), str(tmp_path / "new")).report

    assert (found.rows_old, found.rows_new, found.both, found.only_old, found.only_new) == (4, 3, 2, 1, 0)
    assert (found.same_label, [(f.old_label, f.new_label) for f in found.flips]) == (1, [("dog", "owl")])
    assert (found.repeats_old, found.repeats_new, found.compared_by) == (1, 1, "id")
    assert (found.old_model, found.new_model) == ("first:int8:fast", "second:int8:fast")


def test_logs_of_several_models_are_compared_model_by_model(tmp_path):
    for name, best in (("old", 0), ("new", 1)):
        add_part(tmp_path / name, [("a", best)], model="first")
        add_part(tmp_path / name, [("a", 2)], model="second", classes=("x", "y", "z"))

    found = compare(str(tmp_path / "old"), str(tmp_path / "new")).report

    assert (found.both, found.same_label, found.compared_by) == (2, 1, "name")
    assert [(flip.old_label, flip.new_label) for flip in found.flips] == [("cat", "dog")]


def test_a_log_is_compared_with_an_output_that_has_the_sha256_of_its_images(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    images = {"red": colour_jpeg("red"), "blue": colour_jpeg("blue")}
    for name, image in images.items():
        (tmp_path / f"in/{name}.jpg").write_bytes(image)
    uris = [f"{tmp_path}/in/{name}.jpg" for name in ("red", "gone", "blue")]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    label_without_ray(tmp_path / "list.parquet", tmp_path / "bulk", tiny_model, uri_column="uri", format="parquet")
    keys = [sha256(image).hexdigest() for image in images.values()]
    add_part(tmp_path / "log", [(keys[0], 0), (keys[1], 0)], classes=("red", "green", "blue"))

    compared = compare(str(tmp_path / "bulk"), str(tmp_path / "log"))
    found = compared.report

    assert (found.both, found.same_label, found.only_old, found.only_new) == (2, 1, 0, 0)
    assert [(flip.old_label, flip.new_label) for flip in found.flips] == [("blue", "red")]
    # By which pictures are looked up; that of `gone` is a row too.
    assert [flip.position for (flip,) in compared.flips] == [2]

    colour_shards(tmp_path / "shards")
    label_without_ray(tmp_path / "shards", tmp_path / "plain", tiny_model)
    with pytest.raises(ConfigError, match="has no column content_sha256"):
        compare(str(tmp_path / "log"), str(tmp_path / "plain"))


def test_a_log_and_an_output_never_share_a_folder(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    label_without_ray(tmp_path / "in", tmp_path / "bulk", tiny_model)
    dest = add_part(tmp_path / "log", [("a", 0)])

    with pytest.raises(ConfigError, match=r"bulk holds the output of a run of `label`; .* needs a folder of its own"):
        begin_log(open_storage(str(tmp_path / "bulk")))
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="log is a prediction log of `serve`"):
            run(
                LabelConfig(
                    source=[str(tmp_path / "in")],
                    output=str(tmp_path / "log"),
                    model=str(tiny_model),
                    top_k=3,
                    overwrite=overwrite,
                )
            )
    with pytest.raises(ConfigError, match="is a prediction log"):
        open_finished(str(tmp_path / "log"))  # as relabel does
    assert verify_dest(dest).rows == 1

    (tmp_path / "mine").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine" / "mine.parquet")
    with pytest.raises(SourceError, match=r"already holds mine\.parquet"):
        begin_log(open_storage(str(tmp_path / "mine")))


def test_a_log_is_begun_once_and_empty_until_there_is_a_part(tmp_path):
    dest = open_storage(str(tmp_path))
    begin_log(dest)
    first = (tmp_path / "_shardlabel/plan/plan.json").read_bytes()
    begin_log(dest)

    assert (tmp_path / "_shardlabel/plan/plan.json").read_bytes() == first
    assert read_plan(dest, logs=True).is_log
    assert open_records(dest)[0].units == 0
    with pytest.raises(SourceError, match="that has no rows yet"):
        open_finished(str(tmp_path), logs=True)


def test_review_says_that_it_needs_images(tmp_path):
    add_part(tmp_path / "log", [("a", 0)])

    outcome = CliRunner().invoke(
        build_app(), ["review", "sample", str(tmp_path / "log"), "--output", str(tmp_path / "look")]
    )

    assert isinstance(outcome.exception, ConfigError) or "is a prediction log" in outcome.output
