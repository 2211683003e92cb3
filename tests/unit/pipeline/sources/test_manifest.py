"""Manifests: rows that name images, in units of rows; keys, carried columns, rows that are not wanted, broken files."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.decode.decode import ImageLimits
from models.errors import ConfigError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.plan import SINGLE_SHARD_UNITS, cut_units
from pipeline.fetch.settings import FetchSettings
from pipeline.operators.stages import count_samples
from pipeline.sources.manifest import MOST_ROWS, read_manifest, row_runs
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.reader import ReadSettings, columns_of, slices
from pipeline.sources.sample import Sample, ShardNotes, UniqueKeys
from pipeline.sources.source import open_source
from pipeline.sources.unit import Slice
from pipeline.storage.storage import open_storage
from tests.support.tiny_model import COLOURS, colour_jpeg

IMAGES = [colour_jpeg(name) for name in COLOURS]
# Keys that come again, that look like those of others that came again, that are null or too long.
AWKWARD_KEYS = [
    (f"k{row % 4}", f"k{row % 4}#2", None, "row 2", "ü" * 3000 + str(row))[row % 5 if row % 7 else row % 3]
    for row in range(30)
]
URI = ParquetColumns(uri="uri")


def write(folder: Path, rows: int = 30, *, group: int = 7, **columns: Any) -> pa.Table:
    """Write a manifest `m.parquet` of so many rows, of which each three name the three images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    table = pa.table({"uri": [f"{row % 3}.jpg" for row in range(rows)], "n": range(rows), **columns})
    pq.write_table(table, folder / "m.parquet", row_group_size=group)
    return table


def read(
    folder: Path,
    start: int = 0,
    stop: int = -1,
    columns: ParquetColumns = URI,
    wanted: Any = None,
    limit: int = -1,
    limits: ImageLimits | None = None,
) -> tuple[list[Sample], ShardNotes]:
    storage, notes = open_storage(str(folder)), ShardNotes()
    found = storage.stat("m.parquet")
    assert found is not None
    piece = Slice("m.parquet", found.size, found.etag, start, stop, limit)
    limits = limits or ImageLimits()
    return list(read_manifest(storage, piece, notes, limits, columns, FetchSettings(), wanted)), notes


def config(folder: Path, **options: Any) -> LabelConfig:
    return LabelConfig(source=str(folder / "m.parquet"), output="out", uri_column="uri", **options)


def test_each_row_is_a_sample_with_its_image_its_uri_and_the_digest_of_what_was_fetched(tmp_path):
    write(tmp_path)
    columns = ParquetColumns(uri="uri", carried=(pa.field("n", pa.int64()),))

    samples, notes = read(tmp_path, columns=columns)

    assert [s.key for s in samples] == [str(row) for row in range(30)]
    assert [s.data for s in samples] == [IMAGES[row % 3] for row in range(30)]
    assert samples[4].carried == (4, "1.jpg", sha256(IMAGES[1]).hexdigest())
    assert [field.name for field in columns.added] == ["n", "uri", "content_sha256"]
    assert notes.missing is None
    assert notes.bytes_read > sum(len(IMAGES[row % 3]) for row in range(30))


def test_rows_without_a_fetched_image_say_why_and_have_no_digest(tmp_path):
    write(tmp_path, 6, uri=[None, " ", "gone.jpg", "x" * 5000, "ftp://h/1.jpg", "0.jpg"])

    samples, _ = read(tmp_path, limits=ImageLimits(max_image_bytes=10))

    assert [(s.status, s.error) for s in samples] == [
        ("empty", "the URI is null"),
        ("empty", "the URI is empty"),
        ("unreachable", "it does not exist"),
        ("unsupported", "the URI has 5000 bytes, more than the 4096 allowed; it is cut"),
        ("unsupported", "expected a path, s3://, gs://, az://, http:// or https://, got ftp://"),
        ("too_large", f"{len(IMAGES[0])} bytes are more than the 10 allowed"),
    ]
    assert [s.carried[0] for s in samples] == [None, " ", "gone.jpg", "x" * 4096, "ftp://h/1.jpg", "0.jpg"]
    assert {s.carried[1] for s in samples} == {None}


@pytest.mark.parametrize("key", [None, "id"])
def test_pieces_give_the_rows_of_the_whole_wherever_row_groups_end(tmp_path, key):
    write(tmp_path, 30, id=AWKWARD_KEYS)
    columns = ParquetColumns(uri="uri", key=key)

    whole, _ = read(tmp_path, columns=columns)
    for edges in ([0, 30], [0, 1, 7, 8, 14, 30], [0, 3, 20, 21, 29, 30], list(range(31))):
        pieces = [read(tmp_path, *edge, columns=columns)[0] for edge in pairwise(edges)]
        assert [sample for piece in pieces for sample in piece] == whole

    assert len({s.key for s in whole}) == 30


def test_rows_that_are_not_wanted_are_not_fetched_and_give_no_sample(tmp_path):
    write(tmp_path, 30)
    (tmp_path / "1.jpg").unlink()
    wanted = np.arange(10) % 3 != 1

    samples, _ = read(tmp_path, 3, 13, wanted=wanted)

    assert [s.key for s in samples] == [str(3 + row) for row in range(10) if row % 3 != 1]
    assert all(s.status is None for s in samples)


def test_a_limit_fetches_no_more(tmp_path):
    write(tmp_path, 30)

    samples, notes = read(tmp_path, 0, 30, limit=2)

    assert len(samples) == 2
    assert notes.bytes_read < (tmp_path / "m.parquet").stat().st_size + 3 * len(IMAGES[0])


def test_units_are_runs_of_rows_and_small_manifests_are_one(tmp_path):
    assert list(row_runs(0)) == [(0, 0)]
    assert list(row_runs(1000)) == [(0, 1000)]
    assert list(row_runs(2500)) == [(0, 1000), (1000, 2000), (2000, 2500)]
    assert len(list(row_runs(1_000_000))) == 1000
    assert max(stop - start for start, stop in row_runs(50_000_000)) == MOST_ROWS
    pq.write_table(pa.table({"uri": [f"{row}.jpg" for row in range(2500)]}), tmp_path / "m.parquet")

    pieces = list(slices(open_source([str(tmp_path)], SourceFormat.AUTO), manifests=True))

    assert [(piece.start, piece.stop) for piece in pieces] == list(row_runs(2500))


def test_a_run_of_rows_is_a_unit_by_itself_however_many_there_are():
    pieces = [Slice("m.parquet", 100, "", start, start + 10) for start in range(0, 50, 10)]

    units = list(cut_units(pieces, first=SINGLE_SHARD_UNITS))

    assert [len(unit.slices) for unit in units] == [1] * 5


def test_images_are_counted_without_fetching_any(tmp_path):
    write(tmp_path, 30)
    settings: Any = ReadSettings(None, None, None, URI)

    assert count_samples(settings, Slice("m.parquet", 1, "", 10, 30), 50) == 20
    assert count_samples(settings, Slice("m.parquet", 1, "", 10, 30), 5) == 5


def test_broken_manifests_give_what_they_can_and_say_what_is_missing(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    (piece,) = slices(open_source([str(tmp_path)], SourceFormat.AUTO), manifests=True)
    assert piece.stop == -1
    samples, notes = read(tmp_path)
    assert (samples, (notes.missing or "")[:18]) == ([], "unreadable Parquet")

    pq.write_table(pa.table({"other": ["1.jpg"]}), tmp_path / "m.parquet")
    samples, notes = read(tmp_path)
    assert samples == []
    assert "--uri-column uri: there is no such column" in (notes.missing or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uri_column": "other"}, "--uri-column other: there is no such column; there are uri (string), n (int64)"),
        ({"uri_column": "n"}, "--uri-column n holds int64; URIs are strings"),
        ({"carry": ("uri",)}, "--carry uri: the output has a column of that name already"),
        (
            {"image_column": "n"},
            "--image-column names a column of images, and --uri-column one of URIs: give one of them",
        ),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, options, message):
    write(tmp_path)

    with pytest.raises(ConfigError) as caught:
        columns_of(
            open_source([str(tmp_path / "m.parquet")], SourceFormat.AUTO),
            LabelConfig(**{"source": "m", "output": "out", "uri_column": "uri", **options}),
        )

    assert str(caught.value).startswith(message)


def test_a_uri_column_is_for_parquet(tmp_path):
    write(tmp_path)

    with pytest.raises(ConfigError, match="--uri-column, --key-column and --carry are for Parquet"):
        columns_of(open_source([str(tmp_path / "0.jpg")], SourceFormat.AUTO), config(tmp_path))


def test_keys_are_unique_without_looking_long_at_the_rows_before(tmp_path, monkeypatch):
    rows = 200_000
    pq.write_table(
        pa.table({"uri": ["no.jpg"] * rows, "id": [f"k{row % (rows - 10)}" for row in range(rows)]}),
        tmp_path / "m.parquet",
    )
    looked_at = []
    unique = UniqueKeys.unique
    monkeypatch.setattr(UniqueKeys, "unique", lambda self, key: looked_at.append(key) or unique(self, key))

    samples, _ = read(tmp_path, rows - 20, rows, ParquetColumns(uri="uri", key="id"))

    assert [s.key for s in samples[-2:]] == ["k8#2", "k9#2"]
    assert len(looked_at) == 30


@pytest.mark.parametrize("keys", [["a", "a", "a#2", "b"], ["row 3", "x", "y", None], ["a#2", "a", "a", "a#2"]])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_keys_are_those_of_the_whole_wherever_units_end(tmp_path, keys, cut):
    pq.write_table(pa.table({"uri": ["no.jpg"] * 4, "id": keys}), tmp_path / "m.parquet")
    columns = ParquetColumns(uri="uri", key="id")

    whole, _ = read(tmp_path, 0, 4, columns)
    parts = [sample for start, stop in ((0, cut), (cut, 4)) for sample in read(tmp_path, start, stop, columns)[0]]

    assert [one.key for one in parts] == [one.key for one in whole]
    assert len({one.key for one in whole}) == 4
