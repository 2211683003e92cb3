"""Parquet: images in either form, columns carried along, large files in pieces, and broken files as far as they go."""

from __future__ import annotations

import datetime
import decimal
import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decode.decode import ImageLimits
from models.errors import ConfigError, StorageError
from pipeline.sources import parquet
from pipeline.sources.parquet import open_parquet, read_parquet, row_group_pieces
from pipeline.sources.parquet_columns import ParquetColumns, choose_columns
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.storage.storage import open_storage
from pipeline.storage.stored_file import RandomFile
from tests.support.shard_factory import BAD_PARQUETS, Shard, huggingface_images, image_rows, noise, parquet_bytes, spoil

LIMITS = ImageLimits()
IMAGE = ParquetColumns("image")


def random_file(folder: Path, content: bytes) -> RandomFile:
    (folder / "a.parquet").write_bytes(content)
    return open_storage(str(folder)).open_random("a.parquet")


def read(
    folder: Path, content: bytes, columns: ParquetColumns = IMAGE, limits: ImageLimits = LIMITS, **options: Any
) -> tuple[list[Sample], ShardNotes]:
    notes = ShardNotes()
    return list(read_parquet(random_file(folder, content), "a", notes, limits, columns, **options)), notes


@pytest.mark.parametrize("shard", BAD_PARQUETS.values(), ids=BAD_PARQUETS)
@pytest.mark.parametrize("prefetch", [False, True], ids=["plain", "prefetch"])
def test_every_row_that_can_be_had_is_had_and_every_loss_is_told(tmp_path: Path, shard: Shard, prefetch: bool) -> None:
    samples, notes = read(tmp_path, shard.content, prefetch=prefetch)

    assert tuple(s.key for s in samples if s.status is None) == shard.ok
    assert {s.key: s.status for s in samples if s.status is not None} == shard.other
    assert (notes.missing is None) == (shard.missing is None), notes.missing
    assert (shard.missing or "") in (notes.missing or "")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "struct", "dictionary"], ids=str)
def test_images_come_out_byte_for_byte_from_every_kind_of_column(tmp_path: Path, kind: Any) -> None:
    images = image_rows(7)
    column: pa.Array = pa.array(images, pa.binary())
    if kind == "struct":
        column = huggingface_images([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)])
    elif kind == "dictionary":
        column = column.dictionary_encode()
    else:
        column = column.cast(kind)

    samples, notes = read(tmp_path, parquet_bytes({"image": column}, rows_per_group=3), ParquetColumns())

    assert [s.data for s in samples] == images
    assert [s.key for s in samples] == [str(i) for i in range(7)]
    assert notes.missing is None


def test_a_null_image_error_says_what_is_there_instead(tmp_path: Path) -> None:
    samples, _ = read(tmp_path, BAD_PARQUETS["parquet-of-paths"].content)

    assert [s.error for s in samples] == [
        None,
        "the image is a path, not bytes",
        "the image is null",
        "the image is null",
    ]


def test_an_image_over_the_limit_is_a_row_without_its_bytes(tmp_path: Path) -> None:
    images = pa.array([b"x" * 50, b"x" * 51, b""], pa.binary())

    samples, _ = read(tmp_path, parquet_bytes({"image": images}), limits=ImageLimits(max_image_bytes=50))

    assert [(s.status, s.data) for s in samples] == [(None, b"x" * 50), ("too_large", None), (None, b"")]
    assert samples[1].error == "51 bytes are more than the 50 allowed"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["b", "a", "b", "b"]), ["b", "a", "b#2", "b#3"]),
        (pa.array(["b", "a", "b", "b"]).dictionary_encode(), ["b", "a", "b#2", "b#3"]),
        (pa.array(["b", "a", "b", "b"], pa.large_string()), ["b", "a", "b#2", "b#3"]),
        (pa.array([3, -1, 3, 2**60]), ["3", "-1", "3#2", str(2**60)]),
        (pa.array([2**64 - 1, 0, 1, 2], pa.uint64()), [str(2**64 - 1), "0", "1", "2"]),
        (pa.array(["a", None, "", "c"]), ["a", "row 1", "", "c"]),
    ],
    ids=["string", "dictionary", "large", "int", "uint64", "null"],
)
def test_keys_are_text_and_never_twice_the_same(tmp_path: Path, values: pa.Array, expected: list[str]) -> None:
    content = parquet_bytes({"image": pa.array(image_rows(4), pa.binary()), "id": values}, rows_per_group=2)

    samples, _ = read(tmp_path, content, ParquetColumns("image", "id"))

    assert [s.key for s in samples] == expected


def test_a_key_that_is_no_utf_8_stays_visible(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    content = parquet_bytes({"image": pa.array(image_rows(2), pa.binary()), "id": bad})

    samples, notes = read(tmp_path, content, ParquetColumns("image", "id"))

    assert [s.key for s in samples] == ["caf\\xe9", "ok"]
    assert notes.missing is None


_DAY = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC)
_CARRIED: dict[str, pa.Array] = {
    "int8": pa.array([1, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float16": pa.array([1.5, None], pa.float16()),
    "decimal": pa.array([decimal.Decimal("1.20"), None]),
    "timestamp_ns": pa.array([1234567890123456789, None], pa.timestamp("ns")),
    "timestamp_zone": pa.array([_DAY, None], pa.timestamp("us", "Europe/Berlin")),
    "date": pa.array([5, None], pa.date32()),
    "time_ns": pa.array([12345, None], pa.time64("ns")),
    "duration": pa.array([1234567, None], pa.duration("ns")),
    "text": pa.array(["é", None]),
    "large_text": pa.array(["é", None], pa.large_string()),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "list": pa.array([[1, None], None], pa.list_(pa.int32())),
    "struct": pa.array([{"a": 1, "b": [b"x"]}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
    "bytes": pa.array([b"\xff", None]),
    "fixed": pa.array([b"ab", None], pa.binary(2)),
    "bool": pa.array([True, None]),
    "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
}


def test_carried_columns_keep_their_types_and_values(tmp_path: Path) -> None:
    content = parquet_bytes({"image": pa.array(image_rows(2), pa.binary()), **_CARRIED})
    schema = pq.read_schema(io.BytesIO(content))
    columns = pickle.loads(pickle.dumps(choose_columns(schema, "image", None, list(_CARRIED))))

    samples, notes = read(tmp_path, content, columns)

    assert notes.missing is None
    rows = pickle.loads(pickle.dumps([s.carried for s in samples]))
    table = pq.read_table(io.BytesIO(content))
    for position, field in enumerate(columns.carried):
        made = pa.array([row[position] for row in rows], field.type)
        assert made.equals(table[field.name].combine_chunks().cast(field.type)), field
        assert field.type == schema.field(field.name).type


def test_a_later_file_may_have_narrower_columns(tmp_path: Path) -> None:
    image = pa.array(image_rows(2), pa.binary())
    columns = ParquetColumns("image", None, (pa.field("x", pa.int64()), pa.field("y", pa.string())))
    content = parquet_bytes({"image": image, "x": pa.array([1, 2], pa.int8()), "y": pa.nulls(2)})

    samples, notes = read(tmp_path, content, columns)

    assert [s.carried for s in samples] == [(1, None), (2, None)]
    assert notes.missing is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": image_rows(2)}, "--carry x: there is no such column; there are image (binary); all its rows"),
        ({"image": image_rows(2), "x": ["1", "2"]}, "x holds string, not int32 as in the first file; all its rows"),
        ({"image": image_rows(2), "x": [2**40, 1]}, "row group 0: the last 2 of 2 rows cannot be read"),
    ],
)
def test_a_later_file_of_another_schema_is_a_bad_shard(tmp_path: Path, columns: Any, message: str) -> None:
    samples, notes = read(tmp_path, parquet_bytes(columns), ParquetColumns("image", None, (pa.field("x", pa.int32()),)))

    assert samples == []
    assert message in (notes.missing or "")


SCHEMA = pa.schema(
    [("image", pa.binary()), ("mask", pa.struct([("bytes", pa.binary())])), ("id", pa.int64()), ("x", pa.float64())]
)


@pytest.mark.parametrize(
    ("image", "key", "carry", "message"),
    [
        (None, None, (), r"several columns may hold the images: image, mask; give --image-column"),
        ("photo", None, (), r"--image-column photo: there is no such column; there are image \(binary\), mask"),
        ("id", None, (), r"--image-column id holds int64; images are binary, or a struct with `bytes`"),
        ("image", "key", (), r"--key-column key: there is no such column"),
        ("image", "x", (), r"--key-column x holds double; a key is a string or an integer"),
        ("image", None, ("id", "nope"), r"--carry nope: there is no such column"),
        ("image", None, ("id", "id"), r"--carry id: the output has a column of that name already"),
        ("image", None, ("mask",), r"--carry mask: the output has a column of that name already"),
    ],
)
def test_columns_that_cannot_be_are_errors_that_name_what_there_is(
    image: str | None, key: str | None, carry: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_columns(SCHEMA, image, key, carry, taken=("label", "mask"))


def test_the_only_candidate_is_found(tmp_path: Path) -> None:
    assert choose_columns(SCHEMA.remove(0), None, "id", ("x",)) == ParquetColumns("mask", "id", (SCHEMA.field("x"),))
    with pytest.raises(ConfigError, match=r"no column holds images .* there are id \(int64\)"):
        choose_columns(pa.schema([SCHEMA.field("id")]), None, None, ())


@pytest.mark.parametrize("piece_bytes", [1, 12_000, 40_000, 10**9])
def test_pieces_of_a_file_together_are_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(parquet, "PIECE_BYTES", piece_bytes)
    content = parquet_bytes(rows_per_group=3)

    pieces = list(row_group_pieces(open_parquet(random_file(tmp_path, content)).metadata))
    parts = [read(tmp_path, content, row_groups=piece)[0] for piece in pieces]

    assert [s.key for part in parts for s in part] == [str(i) for i in range(20)]
    assert {1: 7, 12_000: 7, 40_000: 3, 10**9: 1}[piece_bytes] == len(pieces)


@pytest.mark.parametrize("rows_per_group", [1, 3, 7, 20])
def test_keys_are_unique_in_their_file_in_however_many_pieces_it_is_read(tmp_path: Path, rows_per_group: int) -> None:
    names = pa.array([None if i == 11 else f"k{i % 3}" for i in range(20)])
    content = parquet_bytes(
        {"image": pa.array(image_rows(20), pa.binary()), "id": names}, rows_per_group=rows_per_group
    )
    columns = ParquetColumns("image", "id")
    groups = -(-20 // rows_per_group)

    whole, _ = read(tmp_path, content, columns)
    parts = [read(tmp_path, content, columns, row_groups=(i, i + 1)) for i in range(groups)]

    assert len({s.key for s in whole}) == 20
    assert [s.key for part, _ in parts for s in part] == [s.key for s in whole]
    assert all(notes.missing is None for _, notes in parts)


def test_memory_is_that_of_a_batch_and_not_of_a_row_group(tmp_path: Path) -> None:
    big = noise(0, 500_000)
    content = parquet_bytes({"image": pa.array([big] * 120, pa.binary())}, rows_per_group=1000, codec="none")
    file = random_file(tmp_path, content)
    del big
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    peak = 0
    count = 0

    for _ in read_parquet(file, "a", ShardNotes(), LIMITS, IMAGE):
        count += 1
        peak = max(peak, pa.total_allocated_bytes() - before)
    _, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 120
    assert len(content) > 60_000_000
    assert peak < 30_000_000
    assert python_peak < 30_000_000


def test_a_storage_failure_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = random_file(tmp_path, parquet_bytes())
    reading = read_parquet(file, "a", ShardNotes(), LIMITS, IMAGE)
    next(reading)

    def fail(offset: int, size: int) -> bytes:
        raise StorageError("cannot read a: gone")

    monkeypatch.setattr(file._file, "read_at", fail)

    with pytest.raises(StorageError, match="cannot read a: gone"):
        list(reading)


def test_a_storage_failure_that_pyarrow_wraps_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = random_file(tmp_path, parquet_bytes())
    reading = read_parquet(file, "a", ShardNotes(), LIMITS, IMAGE)
    next(reading)

    def fail(size: int = -1) -> bytes:
        file.failure = StorageError("cannot read a: gone")
        raise OSError("Unexpected end of stream")

    monkeypatch.setattr(file, "read", fail)

    with pytest.raises(StorageError, match="cannot read a: gone"):
        list(reading)


def test_a_file_that_is_written_to_while_it_is_read_is_an_error_at_its_end(tmp_path: Path) -> None:
    file = random_file(tmp_path, parquet_bytes())
    reading = read_parquet(file, "a", ShardNotes(), LIMITS, IMAGE)
    next(reading)

    with (tmp_path / "a.parquet").open("ab") as other:
        other.write(b"more")

    with pytest.raises(StorageError, match="changed while it was read: its size was"):
        list(reading)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = random_file(tmp_path, parquet_bytes())
    reading = read_parquet(file, "a", ShardNotes(), LIMITS, IMAGE)
    next(reading)

    with (tmp_path / "a.parquet").open("r+b") as other:
        other.write(b"PAR1")
        other.truncate()

    with pytest.raises(StorageError, match="changed while it was read"):
        list(reading)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 10**6), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_raises_nothing(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes) -> None:
    content = parquet_bytes()
    samples, _ = read(
        tmp_path_factory.mktemp("fuzz"), spoil(content, place % len(content), damage), ParquetColumns("image", "name")
    )

    assert len({s.key for s in samples}) == len(samples)
