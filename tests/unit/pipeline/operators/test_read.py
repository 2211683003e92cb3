"""How shards divide into read tasks, and what their blocks hold; without Ray's processes."""

from __future__ import annotations

import logging
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.decode.decode import ImageLimits
from pipeline.config import SourceFormat
from pipeline.dest.plan import cut_units
from pipeline.operators import read
from pipeline.operators.read import ReadShards, ShardsDatasource
from pipeline.sources.parquet_columns import ANY_COLUMNS, ParquetColumns
from pipeline.sources.reader import slices
from pipeline.sources.source import open_source
from tests.support.shard_factory import jpeg, tar_bytes
from tests.support.tiny_model import colour_shards


def datasource(folder, limits: ImageLimits | None = None) -> ShardsDatasource:
    source = open_source([str(folder)], SourceFormat.AUTO)
    settings = ReadShards(source.base, source.format, limits or ImageLimits(), ANY_COLUMNS)
    return ShardsDatasource(settings, list(cut_units(slices(source))))


def rows(source: ShardsDatasource, parallelism: int = 200) -> list[dict]:
    return pa.concat_tables([block for task in source.get_read_tasks(parallelism) for block in task()]).to_pylist()


@pytest.mark.parametrize("parallelism", [1, 2, 3, 200])
def test_each_sample_is_read_once_however_many_tasks_there_are(tmp_path, parallelism):
    colour_shards(tmp_path, shards=3, samples=4)

    source = datasource(tmp_path)

    assert len(source.get_read_tasks(parallelism)) == min(parallelism, 3)
    assert [row["key"] for row in rows(source, parallelism)] == [f"{s:03d}-{i:03d}" for s in range(3) for i in range(4)]
    assert source.estimate_inmemory_data_size() == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_blocks_are_bounded_by_bytes_and_rows(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{i}.jpg", bytes(1000)) for i in range(10)]))
    (task,) = datasource(tmp_path).get_read_tasks(1)

    monkeypatch.setattr(read, "BLOCK_BYTES", 2_500)
    assert [block.num_rows for block in task()] == [3, 3, 3, 1]
    monkeypatch.setattr(read, "BLOCK_ROWS", 2)
    assert [block.num_rows for block in task()] == [2] * 5


def test_a_sample_without_bytes_says_why(tmp_path):
    members = [("big.jpg", bytes(2000)), ("empty.jpg", b""), ("labels.cls", b"1"), ("whole.jpg", jpeg())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))

    found = {row["key"]: row for row in rows(datasource(tmp_path, ImageLimits(max_image_bytes=1000)))}

    assert {key: row["status"] for key, row in found.items()} == {
        "big": "too_large", "empty": "ok", "labels": "empty", "whole": "ok"
    }  # fmt: skip
    assert found["big"]["error"] == "2000 bytes are more than the 1000 allowed"
    assert found["big"]["bytes"] is None
    assert found["whole"]["bytes"] == jpeg()


def test_what_a_bad_shard_loses_is_a_warning_and_the_rest_is_read(tmp_path, caplog):
    colour_shards(tmp_path, shards=1, samples=2)
    (tmp_path / "zz-garbage.tar").write_bytes(b"no tar at all" * 100)

    with caplog.at_level(logging.WARNING):
        found = rows(datasource(tmp_path))

    assert [row["key"] for row in found] == ["000-000", "000-001"]
    (record,) = caplog.records
    assert "not all of zz-garbage.tar could be read: " in record.getMessage()


def test_images_of_a_manifest_are_fetched_into_rows_with_their_uris(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    pq.write_table(pa.table({"uri": ["a.jpg", "gone.jpg"], "n": [1, 2]}), tmp_path / "m.parquet")
    source = open_source([str(tmp_path / "m.parquet")], SourceFormat.AUTO)
    columns = ParquetColumns(uri="uri", carried=(pa.field("n", pa.int64()),))
    settings = ReadShards(source.base, source.format, ImageLimits(), columns)

    found = rows(ShardsDatasource(settings, list(cut_units(slices(source, manifests=True)))))

    assert [(row["key"], row["status"], row["bytes"], row["n"], row["uri"]) for row in found] == [
        ("0", "ok", jpeg(), 1, "a.jpg"),
        ("1", "unreachable", None, 2, "gone.jpg"),
    ]
    assert [row["content_sha256"] for row in found] == [sha256(jpeg()).hexdigest(), None]
