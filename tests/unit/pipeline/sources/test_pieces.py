"""Large tars in pieces: the same rows as of the whole tar, whatever is in it; and those that are not cut."""

from __future__ import annotations

import tarfile
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.plan import iter_units
from pipeline.dest.resume import prepare
from pipeline.sources import pieces as cutting
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.pieces import cut_large, cutter
from pipeline.sources.reader import read_unit, slices
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import Source, open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage, open_storage
from tests.support.s3_place import read_settings
from tests.support.shard_factory import (
    BAD_TARS,
    ODD_TARS,
    image_rows,
    images,
    jpeg,
    parquet_bytes,
    raw_header,
    tar_bytes,
)

LEAST = 2_000
NESTED = tar_bytes([(f"{i:05d}.jpg", jpeg(i)) for i in range(20, 29)])
LIKE_GZIP = b"".join(
    raw_header(b"\x1f\x8b%d.jpg" % i, len(jpeg(i))) + jpeg(i) + bytes(-len(jpeg(i)) % 512) for i in range(12)
)
PLAIN = {
    "names that begin as a gzip does": tar_bytes(images(9), end=False) + LIKE_GZIP + bytes(1024),
    "ustar": tar_bytes(images(30)),
    "without an end mark's padding": tar_bytes(images(30))[: -8 * 512],
    "pax": tar_bytes([(f"{'x' * 150}/{'y' * 150}{i}.jpg", jpeg(i)) for i in range(20)], format=tarfile.PAX_FORMAT),
    "gnu": tar_bytes([(f"{'x' * 150}/{'y' * 150}{i}.jpg", jpeg(i)) for i in range(20)], format=tarfile.GNU_FORMAT),
    "tars inside": tar_bytes([*images(9), ("00009.tar", NESTED), ("00010.jpg", NESTED), *images(9, first=11)]),
    "several images a key": tar_bytes(
        [(f"{i // 3:05d}.{i % 3}.jpg", jpeg(i)) for i in range(30)] + [("z.jpg", jpeg()), ("z.jpg", jpeg(1))]
    ),
    "two tars, one behind the other": tar_bytes(images(9)) + tar_bytes(images(9, first=9)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(cutting, "PIECE_BYTES", LEAST)


def put(folder: Path, name: str, content: bytes) -> tuple[Storage, Slice]:
    (folder / name).write_bytes(content)
    storage = open_storage(str(folder))
    file = storage.stat(name)
    assert file is not None
    return storage, Slice(name, file.size, file.etag)


def cut(storage: Storage, slices: list[Slice], kind: SourceFormat = SourceFormat.WEBDATASET) -> list[Slice]:
    return list(cut_large(storage, slices, kind))


def read(storage: Storage, pieces: list[Slice]) -> tuple[list[Sample], list[ShardNotes]]:
    """Read pieces as units of their own; return the samples, and what each came upon."""
    settings, samples, noted = read_settings(storage, SourceFormat.WEBDATASET), [], []
    for number, piece in enumerate(pieces):
        samples += read_unit(settings, Unit(number, (piece,)), lambda shard, notes: noted.append(notes))
    return samples, noted


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in PLAIN.items()])
def test_pieces_have_the_rows_of_the_whole_tar(tmp_path: Path, content: bytes) -> None:
    storage, whole = put(tmp_path, "a.tar", content)

    pieces = cut(storage, [whole])
    samples, noted = read(storage, pieces)

    expected, [told] = read(storage, [whole])
    assert samples == expected
    assert len(pieces) > 3
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == len(content)
    assert all(piece.stop - piece.start >= LEAST for piece in pieces[:-1])
    assert [notes.missing for notes in noted] == [None] * len(pieces)
    assert sum(notes.bytes_read for notes in noted) == told.bytes_read
    assert sum(notes.skipped.get("no_key", 0) for notes in noted) == told.skipped.get("no_key", 0)


@pytest.mark.parametrize("name", [*BAD_TARS, *ODD_TARS])
def test_whatever_is_wrong_with_a_tar_its_rows_and_notes_are_as_of_the_whole(tmp_path: Path, name: str) -> None:
    shard = (BAD_TARS | ODD_TARS)[name]
    storage, whole = put(tmp_path, shard.name, shard.content)

    pieces = cut(storage, [whole])

    assert read(storage, pieces)[0] == read(storage, [whole])[0]
    if name in BAD_TARS and len(pieces) > 1:
        assert [notes.missing for notes in read(storage, pieces)[1]] == [None] * len(pieces)
        assert read(storage, [whole])[1][0].missing is None


def with_global_header() -> bytes:
    """Return a tar whose members have their size from one header in front of them all."""
    content = jpeg() + bytes(-len(jpeg()) % 512)
    members = [raw_header(b"%d.jpg" % i, 0) + content for i in range(30)]
    return tarfile.TarInfo.create_pax_global_header({"size": str(len(jpeg()))}) + b"".join(members) + bytes(1024)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.tar", tar_bytes([*images(30), ("00000.txt", b"late")]), id="a key that comes again at the end"),
        pytest.param("a.tar", with_global_header(), id="a header of all members"),
        pytest.param("a.tar", tar_bytes(images(30))[:-30_000], id="truncated"),
        pytest.param("a.tar", ODD_TARS["gzip-without-its-name"].content * 9, id="a gzip"),
        pytest.param("a.tar.gz", tar_bytes(images(30)), id="another name"),
    ],
)
def test_a_tar_that_must_be_read_from_its_beginning_stays_whole(tmp_path: Path, name: str, content: bytes) -> None:
    storage, whole = put(tmp_path, name, content)

    assert cut(storage, [whole]) == [whole]


def test_a_header_of_all_members_gives_each_its_size(tmp_path: Path) -> None:
    storage, whole = put(tmp_path, "a.tar", with_global_header())

    samples, [notes] = read(storage, [whole])

    assert [sample.data for sample in samples] == [jpeg()] * 30
    assert notes.missing is None


def test_a_whole_tar_without_an_end_mark_is_told(tmp_path: Path) -> None:
    storage, whole = put(tmp_path, "a.tar", tar_bytes(images(30), end=False))

    assert cut(storage, [whole]) == [whole]
    assert "no end mark" in (read(storage, [whole])[1][0].missing or "")


def test_a_parquet_file_of_many_row_groups_is_cut_between_them(tmp_path: Path) -> None:
    content = parquet_bytes({"image": pa.array(image_rows(20), pa.binary())}, rows_per_group=1)
    storage, whole = put(tmp_path, "a.parquet", content)
    parts = [Slice(whole.shard, whole.size, whole.etag, *edges) for edges in ((0, 7), (7, 20))]
    settings = read_settings(storage, SourceFormat.PARQUET)

    cut_whole, cut_parts = cut(storage, [whole], SourceFormat.PARQUET), cut(storage, parts, SourceFormat.PARQUET)
    rows = [
        [*read_unit(settings, Unit(0, tuple(pieces)), lambda *told: None)] for pieces in ([whole], cut_whole, cut_parts)
    ]

    assert [(piece.start, piece.stop) for piece in cut_whole] == [(row, row + 1) for row in range(20)]
    assert cut_parts == cut_whole
    assert rows[0] == rows[1] == rows[2]
    few = put(tmp_path, "b.parquet", parquet_bytes(rows_per_group=100))[1]
    broken = put(tmp_path, "c.parquet", content[:-9])[1]
    assert cut(storage, [few, broken], SourceFormat.PARQUET) == [few, broken]


def test_a_key_whose_first_row_is_lost_is_numbered_alike_in_the_whole_file_and_its_pieces(tmp_path: Path) -> None:
    columns = {"image": pa.array(image_rows(8), pa.binary()), "name": pa.array(["a", "b"] * 4)}
    content = bytearray(parquet_bytes(columns, rows_per_group=2))
    content[pq.read_metadata(BytesIO(content)).row_group(0).column(0).data_page_offset + 200] ^= 1
    storage, whole = put(tmp_path, "a.parquet", bytes(content))
    settings = read_settings(storage, SourceFormat.PARQUET, columns=ParquetColumns("image", "name"))
    lost: list[str | None] = []

    def keys(piece: Slice) -> list[str]:
        return [s.key for s in read_unit(settings, Unit(0, (piece,)), lambda shard, notes: lost.append(notes.missing))]

    pieces = cut(storage, [whole], SourceFormat.PARQUET)

    assert keys(whole) == [key for piece in pieces for key in keys(piece)] == ["a#2", "b#2", "a#3", "b#3", "a#4", "b#4"]
    assert "row group 0" in (lost[0] or "")


def test_a_file_whose_key_cannot_be_fetched_is_left_to_the_worker_that_notes_it() -> None:
    odd = Slice("a\x01.parquet", 10**9, "e")

    assert cut(open_storage("s3://bucket/in"), [odd], SourceFormat.PARQUET) == [odd]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"key_column": "name"}, id="each would ask a store for all keys before it"),
        pytest.param({"uri_column": "name"}, id="a manifest is in runs of rows already"),
        pytest.param({"limit": 3}, id="a run with a limit takes whole shards, so its estimate does"),
    ],
)
def test_runs_that_take_no_pieces(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cutting, "_EDGES", {SourceFormat.PARQUET: lambda storage, piece: asked.append(piece.shard)})
    config = LabelConfig(source="s3://bucket/in", output="out", **options)
    whole = Slice("a.parquet", 10**9, "e")

    pieces = cutter(config, Source(open_storage("s3://bucket/in"), SourceFormat.PARQUET, lambda: iter([])))(
        iter([whole])
    )

    assert list(pieces) == [whole]
    assert not asked


def test_many_tars_small_ones_and_those_with_a_limit_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, whole = put(tmp_path, "a.tar", tar_bytes(images(30)))
    many = [whole] * (cutting.MOST_SHARDS + 1)
    limited = Slice(whole.shard, whole.size, whole.etag, limit=3)

    assert cut(storage, many) == many
    assert cut(storage, [limited]) == [limited]
    assert len(cut(storage, many[1:])) > len(many)
    monkeypatch.setattr(cutting, "WHOLE_BYTES", whole.size)
    assert cut(storage, [whole]) == [whole]


@pytest.mark.parametrize("place", [0, 20, 40])
def test_of_many_tars_one_that_would_outlast_the_others_is_cut(tmp_path: Path, place: int) -> None:
    storage, large = put(tmp_path, "large.tar", tar_bytes(images(30)))
    _, small = put(tmp_path, "small.tar", tar_bytes(images(3)))
    many = [small] * (cutting.MOST_SHARDS + 8)

    pieces = cut(storage, [*many[:place], large, *many[place:]])

    assert [piece.shard for piece in pieces].count("large.tar") > 3
    assert [piece for piece in pieces if piece.shard == "small.tar"] == many


def test_little_more_than_the_headers_is_read_to_cut_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, whole = put(tmp_path, "a.tar", tar_bytes([(f"{i}.jpg", bytes(1_000_000)) for i in range(9)]))
    asked: list[int] = []
    really = cutting.StoredFile.read_at
    monkeypatch.setattr(
        cutting.StoredFile, "read_at",
        lambda self, offset, size: asked.append(size) or really(self, offset, size),
    )  # fmt: skip

    assert [piece.start // 1_000_000 for piece in cut(storage, [whole])] == list(range(9))
    assert sum(asked) < 100_000


def planned(folder: Path, **options: object) -> list[tuple[int, int]]:
    """Plan a run over the tars of a folder, or go on with the one that was planned; return the slices' bytes."""
    config = LabelConfig(source=str(folder / "in"), output=str(folder / "out"), **options)
    source = open_source(config.source, SourceFormat.AUTO)
    dest = open_storage(config.output)
    work = prepare(config, dest, {}, source, lambda: slices(source), lambda piece, most: most)
    return [(piece.start, piece.stop) for unit in iter_units(dest, work.plan) for piece in unit.slices]


def test_a_run_plans_pieces_and_one_that_was_planned_without_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path / "in", "a.tar", tar_bytes(images(30)))
    monkeypatch.setattr(cutting, "MOST_SHARDS", 0)
    before = planned(tmp_path)
    monkeypatch.setattr(cutting, "MOST_SHARDS", 9)

    goes_on = planned(tmp_path)
    anew = planned(tmp_path, overwrite=True)
    again = planned(tmp_path)
    put(tmp_path / "in", "b.tar", tar_bytes(images(30)))
    grown = planned(tmp_path, append=True)

    assert before == goes_on == [(0, -1)]
    assert len(anew) > 3
    assert all(left[1] == right[0] for left, right in pairwise(anew))
    assert again == anew
    assert grown == anew * 2
