from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import SourceFormat
from pipeline.report.contact_sheet import SHEET_SIZE, Group
from pipeline.report.findings import gather
from pipeline.report.scan import LOWEST_ROWS, reach
from pipeline.sources.unit import part_name
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import COLOURS, colour_jpeg, colour_shards, write_tar


def test_thumbnails_are_the_images_of_their_rows(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=3, samples=40)
    dest = make_dest(tmp_path, tiny_model)

    sheet = gather(dest).sheet

    rows = [row for rows in sheet.groups.values() for row in rows]
    assert len(rows) == SHEET_SIZE == len({(row.shard, row.key) for row in rows}) == len(sheet.thumbnails)
    assert {row.shard for row in sheet.groups[Group.ACROSS]} == {f"shard-00{i}.tar" for i in range(3)}
    for row in rows:
        image = Image.open(io.BytesIO(sheet.thumbnails[row.place]))
        assert image.size == (128, 128)
        assert row.label is not None
        assert np.abs(np.asarray(image).mean((0, 1)) - COLOURS[row.label]).max() < 12
    assert sheet.problems == []


def test_thumbnails_of_loose_images_and_of_parquet_are_found_too(tmp_path, tiny_model):
    (tmp_path / "images" / "in" / "deep").mkdir(parents=True)
    (tmp_path / "parquet" / "in").mkdir(parents=True)
    for i in range(20):
        (tmp_path / "images" / "in" / "deep" / f"{i:02d}.jpg").write_bytes(colour_jpeg("green"))
    pq.write_table(pa.table({"image": [colour_jpeg("blue")] * 20}), tmp_path / "parquet" / "in" / "a.parquet")

    images = gather(make_dest(tmp_path / "images", tiny_model, kind=SourceFormat.IMAGES)).sheet
    parquet = gather(make_dest(tmp_path / "parquet", tiny_model, kind=SourceFormat.PARQUET)).sheet

    assert len(images.thumbnails) == len(parquet.thumbnails) == 20
    assert images.problems == parquet.problems == []


def test_the_lowest_scores_are_on_the_sheet_lowest_first(tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    greys = [_jpeg((100 + 7 * i, 100, 100)) for i in range(20)]
    for shard in range(3):
        write_tar(tmp_path / "in" / f"{shard}.tar", {f"{i:02d}.jpg": grey for i, grey in enumerate(greys)})
    dest = make_dest(tmp_path, tiny_model)

    found = gather(dest)

    rows = found.sheet.groups[Group.LOWEST]
    everything = pq.read_table(tmp_path / "out", columns=["score"]).column("score").to_numpy()
    assert [row.score for row in rows] == pytest.approx(np.sort(everything)[:LOWEST_ROWS].tolist())
    assert {row.key for row in rows} == {"00", "01", "02", "03"}


def test_two_reports_of_a_run_choose_the_same_samples(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=4, samples=40)
    dest = make_dest(tmp_path, tiny_model)

    assert gather(dest).sheet == gather(dest).sheet


@pytest.mark.parametrize("whole_bytes", [0, 2**20], ids=["large part", "small part"])
def test_how_a_part_divides_into_row_groups_makes_no_difference(tmp_path, tiny_model, monkeypatch, whole_bytes):
    (tmp_path / "in").mkdir()
    members = {f"{i:02d}.jpg": b"" if i % 5 == 3 else _jpeg((220 - 7 * i, 100, 100)) for i in range(20)}
    write_tar(tmp_path / "in" / "a.tar", members)
    dest = make_dest(tmp_path, tiny_model)
    before = gather(dest)

    part = tmp_path / "out" / part_name(0)
    pq.write_table(pq.read_table(part), part, row_group_size=3)
    monkeypatch.setattr("pipeline.dest.finished.WHOLE_BYTES", whole_bytes)
    after = gather(dest)

    assert [row.key for row in before.examples["empty"]] == ["03", "08", "13", "18"]
    assert (after.examples, after.sheet) == (before.examples, before.sheet)
    assert (after.counts.labels, after.counts.lowest) == (before.counts.labels, before.counts.lowest)


def test_a_shard_that_was_written_anew_lends_no_pictures(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=2)
    dest = make_dest(tmp_path, tiny_model)
    write_tar(tmp_path / "in" / "shard-001.tar", {"001-000.jpg": colour_jpeg("blue")})

    sheet = gather(dest).sheet

    assert {unit for unit, _ in sheet.thumbnails} == {0}
    assert any("shard-001.tar has changed since" in problem for problem in sheet.problems)


def test_only_rows_near_the_beginning_of_a_large_unit_are_fetched():
    assert reach(100, 10 * 2**20) == 100
    assert reach(100_000, 3200 * 2**20) == 1000
    assert reach(10, 2**50) == 1


def _jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
