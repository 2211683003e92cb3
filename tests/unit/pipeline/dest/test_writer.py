from __future__ import annotations

import errno
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import load_spec
from models.errors import StorageError
from models.inference.predictions import Predictions
from pipeline.dest.writer import ROW_GROUP_ROWS, OutputSpec, Row, UnitWriter, build_batch
from tests.support.calibrations import build_calibration

SPEC = OutputSpec(("red", "green", "blue"), {"shardlabel.model": "tiny"})


def predictions(ids: list[list[int]]) -> Predictions:
    array = np.asarray(ids, np.int32).reshape(len(ids), -1 if ids else 2)
    return Predictions(array, 1 / (1 + np.arange(array.size, dtype=np.float32)).reshape(array.shape))


def test_rows_that_are_not_ok_have_nulls_and_the_others_their_own_labels():
    rows = [
        Row("a.tar", "1", width=4, height=3),
        Row("a.tar", "2", "undecodable", "truncated", 9, 8),
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
    assert table[1]["error"] == "truncated"


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
    """Write rows whose shards, statuses and texts change in the middle of things."""
    schema = SPEC.schema()
    number = 0
    with UnitWriter(path, schema) as writer:
        for size in sizes:
            numbers = range(number, number + size)
            rows = [
                Row(f"{i // 700}.tar", str(i), *(("empty", f"no {i % 900}") if i % 999 == 5 else ()), width=1)
                for i in numbers
            ]
            ids = [[i % 3, (i + 1) % 3] for i, row in zip(numbers, rows, strict=True) if row.status == "ok"]
            scores = np.asarray([[0.9, 0.1]] * len(ids), np.float32).reshape(-1, 2)
            ids = np.asarray(ids, np.int32).reshape(-1, 2)
            writer.write(build_batch(rows, Predictions(ids, scores), SPEC, schema))
            number += size
    return writer


def digests(tmp_path, *sizes: list[int]) -> set[bytes]:
    """Write the same rows in batches of different sizes, and return the SHA-256 of what came of each."""
    found = set()
    for number, batches in enumerate(sizes):
        write(tmp_path / f"{number}.parquet", batches)
        found.add(hashlib.sha256((tmp_path / f"{number}.parquet").read_bytes()).digest())
    return found


def test_the_bytes_do_not_depend_on_how_rows_came_in_batches(tmp_path):
    whole = [20_000]
    by_builds = [[1024] * 19 + [544], [1100] * 18 + [200], [1072] * 18 + [704], [4096] * 4 + [3616]]

    assert len(digests(tmp_path, whole, *by_builds, [1, 16_383, 1, 3615], [7] * 2857 + [1])) == 1


@given(cuts=st.sets(st.integers(1, 2_499), max_size=8))
@settings(max_examples=20, deadline=None)
def test_the_bytes_are_those_of_the_rows_however_they_are_cut(tmp_path_factory, cuts):
    edges = [0, *sorted(cuts), 2_500]

    assert len(digests(tmp_path_factory.mktemp("x"), [2_500], [b - a for a, b in pairwise(edges)])) == 1


def test_row_groups_have_one_size_and_compression_is_zstandard(tmp_path):
    writer = write(tmp_path / "a.parquet", [10_000] * 4)

    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 40_000 - 2 * ROW_GROUP_ROWS]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert (writer.rows, writer.statuses) == (40_000, {"ok": 39_959, "empty": 41})
    assert pq.read_table(tmp_path / "a.parquet").column("key").to_pylist() == [str(i) for i in range(40_000)]


def test_a_unit_without_rows_is_a_readable_file(tmp_path):
    with UnitWriter(tmp_path / "a.parquet", SPEC.schema()):
        pass

    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), UnitWriter(tmp_path / "a.parquet", SPEC.schema()):
        raise RuntimeError("stop")

    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """A file that takes so many bytes, and then has no room: also when it is closed, as a real one."""

    def __init__(self, path, room: int) -> None:
        self.file = Path(path).open("wb")  # noqa: SIM115 (closed below)
        self.room = room
        self.closed = False

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.closed = True
        self.file.close()
        self.flush()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_full_disk_is_an_error_that_says_so_and_leaves_no_file(tmp_path, monkeypatch, share):
    whole = write(tmp_path / "a.parquet", [1_000] * 20).path
    room = int(share * whole.stat().st_size)
    whole.unlink()
    real = pq.ParquetWriter
    monkeypatch.setattr(
        pq, "ParquetWriter", lambda path, *rest, **options: real(FullDisk(path, room), *rest, **options)
    )

    with pytest.raises(StorageError, match=r"cannot write .*a\.parquet: no space left on the device"):
        write(tmp_path / "a.parquet", [1_000] * 20)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_begun_is_an_error_that_names_it(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*gone/a\.parquet"):
        write(tmp_path / "gone" / "a.parquet", [1])


def test_embeddings_are_a_fixed_size_list_and_null_where_not_ok():
    spec = OutputSpec(("red", "green", "blue"), {}, embedding_size=2)
    given = Predictions(
        np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32), embedding=np.asarray([[1, 2]], np.float32)
    )

    batch = build_batch([Row("a", "1", "empty", ""), Row("a", "2")], given, spec, spec.schema())

    assert batch.schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert batch.column("embedding").to_pylist() == [None, [1.0, 2.0]]


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_large_carried_values_end_row_groups_at_the_same_rows_whatever_the_batches(tmp_path, kind):
    carried = (pa.field("text", kind),)
    spec = OutputSpec(("red", "green"), {}, carried=carried)
    rows = [Row("a.tar", str(row), "empty", carried=("x" * (2**20 if row % 3 else 7),)) for row in range(400)]
    digests = set()

    for size in (1, 3, 64, 400):
        with UnitWriter(tmp_path / f"{size}.parquet", spec.schema()) as writer:
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                none = Predictions(np.empty((0, 1), np.int64), np.empty((0, 1), np.float32), None, None)
                writer.write(build_batch(batch, none, spec, spec.schema()))
        digests.add(hashlib.sha256(writer.path.read_bytes()).hexdigest())

    assert len(digests) == 1
    assert pq.ParquetFile(writer.path).num_row_groups > 1


def test_accepted_is_there_with_a_calibration_only_and_null_where_not_ok(tiny_model):
    calibration = build_calibration(load_spec(str(tiny_model)), pooled=0.4, classes={1: None})
    spec = OutputSpec(("red", "green", "blue"), {}, embedding_size=1, calibration=calibration)
    given = Predictions(
        np.array([[0, 2], [1, 2], [2, 1]], np.int32),
        np.array([[0.5, 0.4], [1.0, 0.0], [0.4, 0.3]], np.float32),
        embedding=np.zeros((3, 1), np.float32),
    )
    rows = [Row("a", "1"), Row("a", "2", "empty", "no bytes"), Row("a", "3"), Row("a", "4")]

    batch = build_batch(rows, given, spec, spec.schema())

    assert batch.schema.names[12:] == ["accepted", "embedding"]
    assert batch.column("accepted").to_pylist() == [True, None, False, True]
    assert "accepted" not in SPEC.schema().names
    none = build_batch([Row("a", "1", "empty", "no bytes")], given.rows(0, 0), spec, spec.schema())
    assert none.column("accepted").to_pylist() == [None]
