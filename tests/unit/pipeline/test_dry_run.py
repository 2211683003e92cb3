from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline.cli
from cluster.cli import build_app
from models.errors import ConfigError, SourceError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import cut_units, write_plan
from pipeline.dest.writer import OutputSpec, UnitWriter
from pipeline.dry_run import ShardPicker, bytes_per_image, draw, measure, scratch_folder, units_overlap
from pipeline.estimate import Measured, Whole, extrapolate
from pipeline.session.pools import Pools
from pipeline.sources import pieces
from pipeline.sources.pieces import cut_large
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice, Unit, part_name
from pipeline.storage.storage import open_storage
from pipeline.summary import RunReport
from tests.support.shard_factory import images, tar_bytes
from tests.support.tiny_model import colour_shards

# 100 images in 4 units of 2 s each, at 1 kB an image: 12.5 images/s of a worker.
MEASURED = Measured(
    images=100, errors={"empty": 2}, units=4, bytes_per_image=1000.0, unit_seconds=8.0, wall_seconds=5.0,
    startup_seconds=7.0, file_bytes=1000.0, row_bytes=50.0,
)  # fmt: skip
WHOLE = Whole(units=100, shards=100, bytes=10_000_000)


def test_images_come_from_bytes_and_time_from_the_rate_of_a_worker_times_workers():
    estimate = extrapolate(WHOLE, MEASURED, workers=10)

    assert (estimate.images_estimated, estimate.input_bytes, estimate.units) == (10_000, 10_000_000, 100)
    assert (estimate.images_per_s_per_worker, estimate.images_per_s) == (12.5, 125.0)
    assert estimate.seconds_estimated == 7.0 + 10_000 / 125
    assert estimate.output_bytes_estimated == 100 * 1000 + 10_000 * 50
    assert estimate.cost_estimated is None


def test_the_cost_is_the_price_of_the_time():
    estimate = extrapolate(WHOLE, MEASURED, workers=10, price=3.6)

    assert estimate.cost_estimated == pytest.approx(87 / 3600 * 3.6)
    assert "cost:   about 0.087, at 3.6 an hour" in estimate.sentences()


@pytest.mark.parametrize(
    ("workers", "rounds"),
    [
        pytest.param(1, 100, id="one worker does all units"),
        pytest.param(30, 4, id="the last round is not full"),
        pytest.param(100, 1, id="one unit each"),
        pytest.param(1000, 1, id="more workers than units"),
    ],
)
def test_units_are_done_in_rounds_of_as_many_as_there_are_workers(workers, rounds):
    estimate = extrapolate(WHOLE, MEASURED, workers=workers)

    assert estimate.seconds_estimated == 7.0 + rounds * 100 / 12.5
    assert estimate.images_per_s == 12.5 * min(workers, 100)


def test_units_of_unequal_sizes_keep_workers_waiting_for_the_largest():
    uneven = dataclasses.replace(WHOLE, units=4, sizes=(1.0, 1.0, 1.0, 5.0))

    estimate = extrapolate(uneven, MEASURED, workers=2)

    assert estimate.workers_busy == pytest.approx(8 / (2 * 6), abs=1e-4)  # 1 and 5 beside 1 and 1
    assert estimate.seconds_estimated == pytest.approx(7.0 + 6 / 8 * 10_000 / 12.5)
    assert "busy:   workers have work for 67% of the time" in estimate.sentences()


def test_a_large_tar_is_drawn_whole_and_counted_in_its_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5_000)
    (tmp_path / "a.tar").write_bytes(tar_bytes(images(30)))
    base = open_storage(str(tmp_path))
    file = base.stat("a.tar")

    drawn, whole = draw(
        iter([Slice("a.tar", file.size, file.etag)]),
        9,
        SourceFormat.AUTO,
        partial(cut_large, base, kind=SourceFormat.WEBDATASET),
    )

    assert [(piece.shard, piece.stop) for piece in drawn] == [("a.tar", -1)]
    assert whole.units == len(whole.sizes) > 3
    assert (sum(whole.sizes), whole.bytes) == (file.size, file.size)


@pytest.mark.parametrize(
    ("source", "dest", "kind", "decoders", "overlap"),
    [
        pytest.param("in", "out", SourceFormat.WEBDATASET, 0, False, id="tars on a disk, a unit at a time"),
        pytest.param("in", "out", SourceFormat.IMAGES, 0, True, id="images on a disk"),
        pytest.param("s3://b/in", "out", SourceFormat.IMAGES, 0, True, id="images from a store"),
        pytest.param("in", "s3://b/out", SourceFormat.WEBDATASET, 0, True, id="tars, labels to a store"),
        pytest.param("s3://b/in", "s3://b/out", SourceFormat.PARQUET, 0, False, id="Parquet, a unit at a time"),
        pytest.param("in", "out", SourceFormat.IMAGES, 2, True, id="decoders for actors"),
    ],
)
def test_where_an_actor_has_several_units_at_a_time_their_seconds_overlap(source, dest, kind, decoders, overlap):
    source = Source(open_storage(source), kind, lambda: iter([]))

    assert units_overlap(Pools((1, 1), 1, 0, decoders, 8), source, open_storage(dest)) is overlap


def test_where_units_overlap_the_wall_clock_counts_since_they_wait_for_each_other():
    staged = dataclasses.replace(MEASURED, overlap=True)

    estimate = extrapolate(WHOLE, staged, workers=10)

    assert estimate.images_per_s_per_worker == 100 / 5.0 / 4  # 4 of the 10 had something to do
    assert extrapolate(WHOLE, staged, workers=2).images_per_s_per_worker == 100 / 5.0 / 2


def test_a_limit_scales_everything_but_the_start():
    estimate = extrapolate(WHOLE, MEASURED, workers=10, limit=1000)

    assert (estimate.images_estimated, estimate.units, estimate.input_bytes) == (1000, 10, 1_000_000)
    assert estimate.seconds_estimated == 7.0 + 1000 / 125


def test_a_limit_beyond_what_there_is_changes_nothing():
    assert extrapolate(WHOLE, MEASURED, workers=10, limit=10**9) == extrapolate(WHOLE, MEASURED, workers=10)


def test_loose_images_are_counted_not_estimated():
    whole = dataclasses.replace(WHOLE, images=12_345)

    assert extrapolate(whole, MEASURED, workers=10).images_estimated == 12_345


def test_the_sentences_name_what_went_wrong():
    text = extrapolate(WHOLE, MEASURED, workers=10).sentences()

    assert "dry run over 100 images, 2.00 % of them not labelled (2 empty)" in text
    assert "images: about 10,000 in 100 units" in text
    assert "7.0 s to start, then 125 images/s (10 workers, 12.5 each)" in text


def slices(count, size=1000, suffix="tar"):
    return iter([Slice(f"{i:05d}.{suffix}", size + i, "") for i in range(count)])


def test_the_draw_is_the_same_each_time_spread_over_all_and_sums_the_whole():
    drawn, whole = draw(slices(2000), 200, SourceFormat.AUTO)
    again, _ = draw(slices(2000), 200, SourceFormat.AUTO)

    assert drawn == again
    assert len({piece.shard for piece in drawn}) == 200
    numbers = sorted(int(piece.shard[:5]) for piece in drawn)
    assert all(10 < sum(low <= n < low + 400 for n in numbers) < 80 for low in range(0, 2000, 400))
    assert (whole.units, whole.shards, whole.bytes, whole.images) == (2000, 2000, 2_000_000 + sum(range(2000)), None)


def test_a_part_without_a_shard_is_nothing_to_go_by():
    with pytest.raises(SourceError, match="no shard of SOURCE is in this part"):
        draw(iter(()), 10, SourceFormat.AUTO)


def test_parts_of_a_large_file_count_its_bytes_once():
    parts = [Slice("a.parquet", 900, "", start, start + 2) for start in (0, 2, 4)]

    _, whole = draw(iter([*parts, Slice("b.parquet", 100, "")]), 10, SourceFormat.AUTO)

    assert (whole.units, whole.bytes) == (4, 1000)


def test_parquet_files_tell_their_rows(tmp_path):
    for name, rows in (("a", 30), ("b", 10)):
        pq.write_table(pa.table({"image": [b"x"] * rows}), tmp_path / f"{name}.parquet")
    (tmp_path / "c.parquet").write_bytes(b"broken")
    config = LabelConfig(source=(str(tmp_path),), output="y")
    picked = [Slice("a.parquet", 3000, "", 0, 1), Slice("a.parquet", 3000, "", 1, 2), Slice("b.parquet", 1000, "")]

    assert bytes_per_image(config, [*picked, Slice("c.parquet", 6, "")]) == 100
    assert bytes_per_image(config, [Slice("c.parquet", 6, "")]) is None


def test_loose_images_are_units_of_many():
    units = sum(1 for _ in cut_units(slices(2500, suffix="jpg"), images=True))

    drawn, whole = draw(slices(2500, suffix="jpg"), 10, SourceFormat.AUTO)

    assert (len(drawn), whole.units, whole.images) == (10, units, 2500)


@pytest.mark.parametrize(
    ("images", "there", "wanted"),
    [
        pytest.param(200, [1000] * 10, [50, 50, 50, 50], id="a few of each of several shards"),
        pytest.param(200, [1000], [200], id="one shard"),
        pytest.param(10, [1000] * 10, [10], id="too few for two shards"),
        pytest.param(200, [30] * 10, [30] * 6 + [20], id="small shards: more of them"),
        pytest.param(100, [0, 1000, 0, 1000], [50, 50], id="empty shards are passed over"),
        pytest.param(500, [1000, 7], [250, 7], id="fewer than wanted"),
    ],
)
def test_the_pick_takes_the_images_wanted_from_several_shards(monkeypatch, images, there, wanted):
    monkeypatch.setattr("pipeline.dry_run.connect", lambda address: None)
    picker = ShardPicker(images, LabelConfig(source=("x",), output="y"))
    sizes = {f"{i:05d}.tar": count for i, count in enumerate(there)}

    picked = list(picker.pick(slices(len(there)), lambda piece, at_most: min(sizes[piece.shard], at_most)))

    taken = [piece.limit if piece.limit > 0 else sizes[piece.shard] for piece in picked]
    assert sorted(taken) == sorted(wanted)
    assert all(piece.limit == -1 or piece.limit <= sizes[piece.shard] for piece in picked)


def test_shards_without_images_are_an_error(monkeypatch):
    monkeypatch.setattr("pipeline.dry_run.connect", lambda address: None)
    picker = ShardPicker(20, LabelConfig(source=("x",), output="y"))

    with pytest.raises(SourceError, match="no images in 3 shards"):
        list(picker.pick(slices(3), lambda piece, at_most: 0))


def test_the_start_is_what_came_before_the_first_unit_and_counting_is_not_part_of_it(tmp_path):
    dest = open_storage(str(tmp_path))
    schema = OutputSpec(("cat",), {}).schema()
    plan = write_plan(dest, _units(3), {})
    with CommitLog(dest, plan.units, plan.id) as log:
        for unit, seconds in enumerate((2.0, 3.0, 2.5)):
            rows = pa.Table.from_pylist(
                [{"shard": "a", "key": f"{unit}-{i}", "status": "ok"} for i in range(40)], schema
            )
            with UnitWriter(tmp_path / part_name(unit), schema) as writer:
                writer.write(rows.to_batches()[0])
            size = (tmp_path / part_name(unit)).stat().st_size
            log.append(Commit(unit, part_name(unit), 40, 39, {"empty": 1}, seconds, 4000, size, ""))
    report = RunReport(
        status="done", output="", model="m", precision="", decode="", units=3, units_done=3, units_now=3, images=120,
        images_now=120, ok=117, errors={"empty": 3}, error_rate=0.025, bytes_read=12_000, output_bytes=0, seconds=20.0,
        images_per_s=6.0, first_commit_s=12.0,
    )  # fmt: skip

    measured = measure(dest, report, 100.0, counting=1.5, overlap=False, unit_rows=100)

    assert measured.startup_seconds == 12.0 - 2.0 - 1.5
    assert measured.wall_seconds == 20.0 - 1.5 - measured.startup_seconds
    assert (measured.images, measured.units, measured.bytes_per_image, measured.unit_seconds) == (120, 3, 100.0, 7.5)
    alone = (tmp_path / part_name(0)).stat().st_size
    assert measured.file_bytes < alone
    assert measured.row_bytes < (alone - measured.file_bytes) / 40  # dictionaries are shared by more rows


def _units(count):
    return [Unit(i, (Slice(f"{i}.tar", 1, ""),)) for i in range(count)]


@pytest.mark.parametrize(
    ("arguments", "images", "source"),
    [
        pytest.param(["--dry-run"], 200, ("a.tar",), id="last"),
        pytest.param(["--dry-run", "50"], 50, ("a.tar",), id="number"),
        pytest.param(["--dry-run=70"], 70, ("a.tar",), id="equals"),
        pytest.param(["--dry-run", "--top-k", "3"], 200, ("a.tar",), id="option behind it"),
        pytest.param(["--dry-run", "b.tar"], 200, ("a.tar", "b.tar"), id="source behind it"),
        pytest.param(["--", "--dry-run"], None, ("a.tar", "--dry-run"), id="behind a double dash it is a source"),
    ],
)
def test_the_number_of_images_may_be_left_out(monkeypatch, arguments, images, source):
    seen = []
    monkeypatch.setattr(pipeline.cli, "_estimate", lambda settings, n, *rest, **more: seen.append((n, settings)))
    monkeypatch.setattr("pipeline.job.run", lambda settings, **more: seen.append((None, settings)) or 1 / 0)

    CliRunner().invoke(build_app(), ["label", "a.tar", "--output", "out", *arguments])

    ((found, settings),) = seen
    assert (found, settings.source) == (images, source)


@pytest.mark.parametrize("arguments", [["--dry-run", "0"], ["--dry-run", "-5"], ["--dry-run", "--price", "-1"]])
def test_numbers_that_cannot_be_are_usage_errors(arguments):
    done = CliRunner().invoke(build_app(), ["label", "a.tar", "--output", "out", *arguments])

    assert done.exit_code == 2


def test_a_price_without_a_dry_run_is_an_error():
    done = CliRunner().invoke(build_app(), ["label", "a.tar", "--output", "out", "--price", "3"])

    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize("fails", [False, True])
def test_where_a_cluster_is_joined_the_output_goes_beside_the_real_one_and_away_again(tmp_path, fails):
    config = LabelConfig(source=("x",), output=str(tmp_path / "out/"), address="head:6379")

    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), scratch_folder(config) as folder:
        assert Path(folder).parent == tmp_path  # where all nodes can write
        assert Path(folder).name.startswith("out.dry-run-")
        open_storage(folder).write_bytes("_shardlabel/plan/plan.json", b"{}")
        if fails:
            raise ZeroDivisionError

    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_the_output_goes_to_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    with scratch_folder(LabelConfig(source=("x",), output="s3://bucket/labels")) as folder:
        assert Path(folder).is_dir()

    assert not Path(folder).exists()


@pytest.mark.ray
def test_a_dry_run_from_end_to_end_estimates_all_and_leaves_nothing_behind(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    colour_shards(tmp_path / "in", shards=6, samples=100)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("untouched")
    options = ["--output", str(out), "--model", str(tiny_model), "--top-k", "3", "--progress", "none", "--json"]

    done = CliRunner().invoke(
        build_app(), ["label", str(tmp_path / "in"), *options, "--dry-run", "130", "--price", "2"]
    )

    assert done.exit_code == 0, done.output
    assert "the output was not touched" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dry_run"] is True
    assert (found["images_labelled"], found["units"], found["errors"]) == (130, 6, {})
    assert found["images_estimated"] == pytest.approx(600, rel=0.05)  # the end of a small tar is mostly padding
    assert found["input_bytes"] == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert 0 < found["startup_seconds"] < found["seconds_estimated"] < 120
    assert found["cost_estimated"] == pytest.approx(found["seconds_estimated"] / 1800, rel=0.01)
    assert 3000 < found["output_bytes_estimated"] < 60_000
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []
