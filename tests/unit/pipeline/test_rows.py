from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.classifier import Predictions
from pipeline.rows import ROW_GROUP_ROWS, OutputSpec, Row, UnitWriter, build_batch

SPEC = OutputSpec(("red", "green", "blue"), {"shardlabel.model": "tiny"})


def predictions(ids: list[list[int]]) -> Predictions:
    array = np.asarray(ids, np.int32).reshape(len(ids), -1 if ids else 2)
    return Predictions(array, 1 / (1 + np.arange(array.size, dtype=np.float32)).reshape(array.shape))


def test_rows_that_are_not_ok_have_nulls_and_the_others_their_own_labels():
    rows = [
        Row("a.tar", "1", width=4, height=3),
        Row("a.tar", "2", "undecodable", "broken off", 9, 8),
        Row("b.tar", "3", width=5, height=6),
        Row("b.tar", "4", "empty", "no bytes"),
    ]

    table = build_batch(rows, predictions([[2, 0], [1, 2]]), SPEC, SPEC.schema()).to_pylist()

    assert [row["label"] for row in table] == ["blue", None, "green", None]
    assert [row["label_id"] for row in table] == [2, None, 1, None]
    assert [row["top_labels"] for row in table] == [["blue", "red"], None, ["green", "blue"], None]
    assert [row["top_ids"] for row in table] == [[2, 0], None, [1, 2], None]
    assert [row["score"] for row in table] == [1.0, None, pytest.approx(1 / 3), None]
    assert [row["status"] for row in table] == ["ok", "undecodable", "ok", "empty"]
    assert [(row["width"], row["height"]) for row in table] == [(4, 3), (9, 8), (5, 6), (None, None)]
    assert table[1]["error"] == "broken off"


def test_a_batch_without_any_ok_row_can_be_written():
    batch = build_batch([Row("a", "1", "empty", "no bytes")], predictions([]), SPEC, SPEC.schema())

    assert batch.to_pylist()[0]["top_ids"] is None


def test_the_schema_is_that_of_the_contract():
    schema = SPEC.schema()

    assert schema.field("shard").type == schema.field("status").type == pa.dictionary(pa.int32(), pa.string())
    assert [str(schema.field(n).type) for n in ("key", "label", "label_id", "score", "width", "height", "error")] == [
        "string", "string", "int32", "float", "int32", "int32", "string"]  # fmt: skip
    assert schema.field("top_labels").type == pa.list_(pa.string())
    assert schema.metadata == {b"shardlabel.model": b"tiny"}


def write(path, sizes: list[int]) -> UnitWriter:
    schema = SPEC.schema()
    number = 0
    with UnitWriter(path, schema) as writer:
        for size in sizes:
            rows = [Row("a.tar" if i % 3 else "b.tar", str(i), width=1, height=1) for i in range(number, number + size)]
            ids = [[i % 3, (i + 1) % 3] for i in range(number, number + size)]
            scores = np.asarray([[0.9, 0.1]] * size, np.float32)
            writer.write(build_batch(rows, Predictions(np.asarray(ids, np.int32), scores), SPEC, schema))
            number += size
    return writer


def test_the_bytes_do_not_depend_on_how_rows_came_in_batches(tmp_path):
    write(tmp_path / "a.parquet", [50] * 2)
    write(tmp_path / "b.parquet", [1, 98, 1])

    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_row_groups_have_one_size_and_compression_is_zstandard(tmp_path):
    writer = write(tmp_path / "a.parquet", [10_000] * 4)

    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 40_000 - 2 * ROW_GROUP_ROWS]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert (writer.rows, writer.statuses) == (40_000, {"ok": 40_000})
    assert pq.read_table(tmp_path / "a.parquet").column("key").to_pylist() == [str(i) for i in range(40_000)]


def test_a_unit_without_rows_is_a_readable_file(tmp_path):
    with UnitWriter(tmp_path / "a.parquet", SPEC.schema()):
        pass

    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), UnitWriter(tmp_path / "a.parquet", SPEC.schema()):
        raise RuntimeError("stop")

    assert list(tmp_path.iterdir()) == []


def test_embeddings_are_a_fixed_size_list_and_null_where_not_ok():
    spec = OutputSpec(("red", "green", "blue"), {}, embedding_size=2)
    given = Predictions(
        np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32), embedding=np.asarray([[1, 2]], np.float32)
    )

    batch = build_batch([Row("a", "1", "empty", ""), Row("a", "2")], given, spec, spec.schema())

    assert batch.schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert batch.column("embedding").to_pylist() == [None, [1.0, 2.0]]
