"""`shardlabel label` on a local Ray, with a model whose labels can be worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.measure import process_table
from models.errors import ConfigError, SourceError
from pipeline import job
from pipeline.dest.finished import open_finished
from pipeline.job import RunReport
from pipeline.operators import dataset
from pipeline.patches.patch import SWITCH_VARIABLE
from pipeline.session.connect import connect
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import label, parts
from tests.support.tiny_model import colour_jpeg, colour_shards, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model, ray_ends) -> tuple[RunReport, Path]:
    """Return what a run over three shards reported, and its DEST."""
    folder = tmp_path_factory.mktemp("plain")
    colour_shards(folder / "in", shards=3, samples=5)
    connect(None)
    return label(folder / "in", folder / "out", tiny_model), folder / "out"


def files_of(folder: Path) -> dict[Path, int]:
    """Return all files of DEST but its lock, with the times of their last writes."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_every_sample_is_one_row_with_its_label_in_input_order(plain):
    report, dest = plain

    assert (report.status, report.units, report.images, report.ok) == ("done", 3, 15, 15)
    rows = pq.read_table(dest).to_pylist()
    assert [row["key"] for row in rows] == [f"{s:03d}-{i:03d}" for s in range(3) for i in range(5)]
    assert [row["shard"] for row in rows] == [f"shard-{s:03d}.tar" for s in range(3) for _ in range(5)]
    assert [row["label"] for row in rows] == ["red", "green", "blue", "red", "green"] * 3
    assert all(row["score"] == row["top_scores"][0] > 0.9 for row in rows)
    assert all(sorted(row["top_ids"]) == [0, 1, 2] for row in rows)
    assert {(row["width"], row["height"], row["status"], row["error"]) for row in rows} == {(20, 16, "ok", None)}


@pytest.mark.skipif(bool(os.environ.get(SWITCH_VARIABLE)), reason=f"{SWITCH_VARIABLE} has Ray start all of its own")
def test_a_local_ray_runs_nothing_that_one_command_does_not_need(plain):
    import ray
    from ray._private.worker import _global_node

    assert set(_global_node.all_processes) <= {"gcs_server", "raylet", "reaper"}
    raylet = _global_node.all_processes["raylet"][0].process.pid
    if Path("/proc/self/stat").exists():
        children = [pid for pid, (parent, _) in process_table().items() if parent == raylet]
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children]
        assert names.count("cat") == 2
        assert not [name for name in names if "Agent" in name or "python" in name]
    assert ray.util.list_named_actors(all_namespaces=True) == []


def test_the_file_says_what_made_it(plain):
    metadata = pq.ParquetFile(plain[1] / "part-00000.parquet").schema_arrow.metadata

    assert metadata[b"shardlabel.model"] == b"tiny"
    assert metadata[b"shardlabel.precision"] == b"fp32"
    assert metadata[b"shardlabel.decode"] == b"fast"
    assert len(metadata[b"shardlabel.artifact_sha256"]) == 64
    assert json.loads(metadata[b"shardlabel.preprocessing"])["crop"] == 8


def test_any_number_of_actors_any_batch_and_both_shapes_write_the_same_bytes(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3, samples=40)
    write_tar(tmp_path / "in" / "z.tar", {"a.jpg": b"no image", "b.png": colour_jpeg("blue"), "c.jpg": b""})

    label_without_ray(tmp_path / "in", tmp_path / "aside", tiny_model)
    label(tmp_path / "in", tmp_path / "fused", tiny_model, actors="2", batch_size=7)
    report = label(tmp_path / "in", tmp_path / "two", tiny_model, shape="two-stage", actors="1", preprocess_cpus=1)

    assert report.images == 123
    assert parts(tmp_path / "fused") == parts(tmp_path / "aside") == parts(tmp_path / "two")


def test_bad_images_are_rows_a_truncated_shard_gives_what_it_can_and_the_job_goes_on(tmp_path, tiny_model):
    good = colour_jpeg("green")
    members = {"a.jpg": good, "b.jpg": good[:200], "c.jpg": b"", "d.jpg": b"hello", "e.cls": b"1", "f.jpg": good}
    members["g.jpg"] = b"%PDF-1.4"
    first, _ = colour_shards(tmp_path / "in", shards=2, samples=6)
    first.write_bytes(first.read_bytes()[:5000])
    write_tar(tmp_path / "in" / "x.tar", members)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, max_image_bytes=10_000)

    table = pq.read_table(tmp_path / "out").to_pylist()
    rows = {row["key"]: row for row in table if row["shard"] == "x.tar"}
    assert {key: row["status"] for key, row in rows.items()} == {
        "a": "ok", "b": "undecodable", "c": "empty", "d": "undecodable",
        "e": "empty", "f": "ok", "g": "unsupported"}  # fmt: skip
    assert all(row["error"] and row["label"] is None for row in rows.values() if row["status"] != "ok")
    assert report.errors == {"empty": 2, "undecodable": 2, "unsupported": 1}
    assert report.error_rate == pytest.approx(5 / len(table))
    assert (report.status, report.incomplete_shards) == ("done", 1)
    assert "truncated" in report.incomplete["shard-000.tar"]
    whole = [row["status"] for row in table if row["shard"] == "shard-001.tar"]
    assert whole == ["ok"] * 6


def test_a_second_run_does_nothing_and_reads_nothing(plain, tiny_model):
    _, dest = plain
    before = files_of(dest)

    report = label(dest.parent / "in", dest, tiny_model)

    assert (report.status, report.units_now, report.images) == ("done", 0, 15)
    assert files_of(dest) == before


def test_a_run_goes_on_where_another_stopped(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4)
    label_without_ray(tmp_path / "in", tmp_path / "whole", tiny_model)
    label_without_ray(tmp_path / "in", tmp_path / "out", tiny_model)
    _forget_units(tmp_path / "out", {1, 3})

    report = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert (report.units_now, report.units_done, report.images) == (2, 4, 20)
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def _forget_units(folder: Path, units: set[int]) -> None:
    """Take the commit records of units away, as if the run had died before it wrote them."""
    for path in (folder / "_shardlabel" / "commits").glob("*.jsonl"):
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["unit"] not in units]
        path.write_text("".join(line + "\n" for line in kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"top_k": 2}, "begun with top-k 3, and now it is 2", id="top-k"),
        pytest.param({"decode": "exact"}, "begun with decode fast, and now it is exact", id="decode"),
        pytest.param({"max_pixels": 10}, "begun with max-pixels", id="limit"),
    ],
)
def test_a_resume_with_other_settings_is_refused(tmp_path, tiny_model, options, message):
    colour_shards(tmp_path / "in", shards=1)
    label_without_ray(tmp_path / "in", tmp_path / "out", tiny_model)

    with pytest.raises(ConfigError, match=message):
        label(tmp_path / "in", tmp_path / "out", tiny_model, **options)


def test_a_resume_with_a_changed_shard_is_refused_and_overwrite_starts_anew(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    label_without_ray(tmp_path / "in", tmp_path / "out", tiny_model)
    colour_shards(tmp_path / "in", shards=2, samples=9)

    with pytest.raises(SourceError, match=r"shard shard-000\.tar has changed since the run began: its size was"):
        label(tmp_path / "in", tmp_path / "out", tiny_model)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, overwrite=True)
    assert (report.images, pq.read_table(tmp_path / "out").num_rows) == (18, 18)


def test_a_limit_takes_the_first_images_and_can_be_resumed(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4, samples=5)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, limit=12)
    again = label(tmp_path / "in", tmp_path / "out", tiny_model, limit=12)

    assert (report.images, report.units, again.units_now) == (12, 3, 0)
    keys = pq.read_table(tmp_path / "out").column("key").to_pylist()
    assert keys == [f"{s:03d}-{i:03d}" for s in range(4) for i in range(5)][:12]
    with pytest.raises(ConfigError, match="begun with limit 12, and now it is null"):
        label(tmp_path / "in", tmp_path / "out", tiny_model)


def test_parts_of_a_source_hold_each_shard_once_and_a_part_is_resumed_as_itself_alone(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4, samples=2)
    label_without_ray(tmp_path / "in", tmp_path / "whole", tiny_model)

    for n in range(1, 6):
        label_without_ray(tmp_path / "in", tmp_path / f"{n}", tiny_model, part=f"{n}/5")
    sizes = {n: len(read_rows(tmp_path / f"{n}")) for n in range(1, 6)}
    empty, full = min(sizes, key=sizes.get), max(sizes, key=sizes.get)
    reports = [label(tmp_path / "in", tmp_path / f"run-{n}", tiny_model, part=f"{n}/5") for n in (empty, full)]

    assert [(report.status, report.images) for report in reports] == [("done", 0), ("done", sizes[full])]
    assert parts(tmp_path / f"run-{full}") == parts(tmp_path / f"{full}") != {}
    found = [row for n in range(1, 6) for row in read_rows(tmp_path / f"{n}")]
    assert sorted(found, key=lambda row: row["key"]) == read_rows(tmp_path / "whole")
    with pytest.raises(ConfigError, match=f"begun with part {full}/5, and now it is {empty}/5"):
        label(tmp_path / "in", tmp_path / f"run-{full}", tiny_model, part=f"{empty}/5")
    with pytest.raises(SourceError, match=r"labels a part of SOURCE without shards"):
        open_finished(str(tmp_path / f"run-{empty}"))  # as relabel and diff do


def read_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_embeddings_are_a_column_in_both_shapes(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1, samples=3)

    label(tmp_path / "in", tmp_path / "fused", tiny_model, embeddings=True)
    label(tmp_path / "in", tmp_path / "two", tiny_model, embeddings=True, shape="two-stage", actors="1")

    rows = pq.read_table(tmp_path / "fused").to_pylist()
    assert [[round(value) for value in row["embedding"]] for row in rows] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert parts(tmp_path / "fused") == parts(tmp_path / "two")


def test_parquet_with_a_key_and_carried_columns(tmp_path, tiny_model):
    images = [colour_jpeg("blue"), None, colour_jpeg("red")]
    table = pa.table({"id": [11, 12, 13], "img": pa.array(images, pa.binary()), "day": ["a", "b", None]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    options = {"key_column": "id", "carry": ("day",)}

    label(tmp_path / "in", tmp_path / "out", tiny_model, shape="two-stage", **options)
    label_without_ray(tmp_path / "in", tmp_path / "aside", tiny_model, **options)

    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [(row["key"], row["label"], row["status"], row["day"]) for row in rows] == [
        ("11", "blue", "ok", "a"), ("12", None, "empty", "b"), ("13", "red", "ok", None)]  # fmt: skip
    assert parts(tmp_path / "out") == parts(tmp_path / "aside")


def test_loose_images_are_labelled_in_the_order_of_their_paths(tmp_path, tiny_model):
    for name, colour in (("b/2.jpg", "green"), ("a/1.jpeg", "red"), ("b/1.jpg", "blue")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(colour_jpeg(colour))
    (tmp_path / "in" / "readme.txt").write_text("no image")

    report = label(tmp_path / "in", tmp_path / "out", tiny_model)

    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [(row["shard"], row["key"], row["label"]) for row in rows] == [
        ("a", "a/1.jpeg", "red"), ("b", "b/1.jpg", "blue"), ("b", "b/2.jpg", "green")]  # fmt: skip
    assert report.units == 1


def test_a_folder_with_parquet_of_others_is_refused(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"")

    with pytest.raises(SourceError, match=r"already holds mine\.parquet, which no plan"):
        label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"actors": "64"}, r"64 actors need 64 CPUs, and Ray has \d+; give fewer --actors", id="actors"),
        pytest.param({"top_k": 4}, r"--top-k must be between 1 and 3 \(classes of tiny\), got 4", id="top-k"),
    ],
)
def test_what_cannot_be_done_is_an_error_at_once(tmp_path, tiny_model, options, message):
    colour_shards(tmp_path / "in", shards=1)

    with pytest.raises(ConfigError, match=message):
        label(tmp_path / "in", tmp_path / "out", tiny_model, **options)


def test_where_decoders_feed_one_actor_a_window_is_as_large_as_the_decoders_ask_for(tmp_path, tiny_model, monkeypatch):
    colour_shards(tmp_path / "in", shards=6, samples=1)
    monkeypatch.setattr(job, "WINDOW_UNITS", 1)
    monkeypatch.setattr(job, "UNITS_PER_ACTOR", 2)
    windows, label_units = [], dataset.label_units

    def noted(labelling, units, stopping):
        windows.append(len(units))
        return label_units(labelling, units, stopping)

    monkeypatch.setattr(dataset, "label_units", noted)

    report = label(tmp_path / "in", tmp_path / "out", tiny_model, device="simulated:1000")

    assert report.units == 6
    assert windows == [4, 2]
