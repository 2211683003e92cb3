"""Loose images, and the one door through which units of every format are read."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.decode.decode import ImageLimits
from models.errors import ConfigError, SourceError, StorageError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.plan import cut_units
from pipeline.sources import images as images_module
from pipeline.sources import parquet, reader
from pipeline.sources.images import read_images
from pipeline.sources.parquet_columns import ANY_COLUMNS, ParquetColumns
from pipeline.sources.reader import ReadSettings, columns_of, read_unit, slices
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import Source, open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.listing import ahead
from pipeline.storage.storage import open_storage
from tests.support.shard_factory import BAD_PARQUETS, BAD_TARS, image_rows, images, keys, parquet_bytes, tar_bytes

LIMITS = ImageLimits()


def settings_of(source, kind, **options):
    return ReadSettings(source, kind, **{"limits": LIMITS, **options})


@dataclass
class Notes:
    by_shard: dict[str, ShardNotes] = field(default_factory=dict)

    def add(self, shard: str, notes: ShardNotes) -> None:
        assert shard not in self.by_shard
        self.by_shard[shard] = notes


def source_of(folder: Path, **options: Any) -> Source:
    return open_source([str(folder)], SourceFormat(options.get("format", "auto")))


def read_all(source: Source, **options: Any) -> tuple[list[Sample], Notes]:
    settings = pickle.loads(pickle.dumps(settings_of(source.base, source.format, **options)))
    notes = Notes()
    units = cut_units(slices(source), images=source.format is SourceFormat.IMAGES)
    return [sample for unit in units for sample in read_unit(settings, unit, notes.add)], notes


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image %d" % number)


def test_each_file_is_a_sample_with_its_folder_and_its_path(tmp_path: Path) -> None:
    write_images(tmp_path, "b.jpg", "x/a.png", "x/y/c.webp", "notes.txt")

    samples, notes = read_all(source_of(tmp_path))

    assert [(s.shard, s.key, s.data, s.status) for s in samples] == [
        (".", "b.jpg", b"image 0", None),
        ("x", "x/a.png", b"image 1", None),
        ("x/y", "x/y/c.webp", b"image 2", None),
    ]
    assert [n.bytes_read for n in notes.by_shard.values()] == [21]


def test_an_image_over_the_limit_is_not_opened(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    (tmp_path / "a.jpg").chmod(0)

    samples, notes = read_all(source_of(tmp_path), limits=ImageLimits(max_image_bytes=6))

    assert [(s.status, s.error) for s in samples] == [("too_large", "7 bytes are more than the 6 allowed")]
    assert notes.by_shard["a.jpg"].bytes_read == 0


def test_a_file_that_is_gone_is_a_row(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "d.jpg").symlink_to("nowhere")
    pieces = list(slices(source_of(tmp_path)))
    (tmp_path / "b.jpg").unlink()

    samples = list(read_images(open_storage(str(tmp_path)), pieces, ShardNotes(), LIMITS))

    assert [(s.key, s.status) for s in samples] == [
        ("a.jpg", None), ("b.jpg", "empty"), ("c.jpg", None), ("d.jpg", "empty"),
    ]  # fmt: skip
    assert samples[1].error == "the file is gone since the run was planned"


def test_a_file_that_changed_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg")
    pieces = list(slices(source_of(tmp_path)))
    (tmp_path / "b.jpg").write_bytes(b"another")
    os.utime(tmp_path / "b.jpg", ns=(1, 1))

    with pytest.raises(StorageError, match=r"b\.jpg has changed since the run was planned: it was rewritten"):
        list(read_images(open_storage(str(tmp_path)), pieces, ShardNotes(), LIMITS))


def test_a_file_that_may_not_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg")
    really_open = os.open

    def refuse(path: str, flags: int) -> int:  # root, as whom tests may run, is refused nothing
        if path.endswith("a.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    samples, _ = read_all(source_of(tmp_path))

    assert [(s.status, s.error) for s in samples] == [
        ("undecodable", "the file cannot be read: permission denied"), (None, None),
    ]  # fmt: skip


def test_ahead_keeps_order_and_never_has_too_much_under_way() -> None:
    under_way: list[int] = []
    most: list[tuple[int, int]] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            under_way.append(item)
            most.append((len(under_way), sum(under_way)))
        time.sleep(0.002)
        with lock:
            under_way.remove(item)
        return item

    items = [5, 60, 3, 200, 1, 1, 1, 1, 1, 1, 1, 1, 30, 30, 30, 30]
    assert list(ahead(iter(items), work, calls=4, weight=lambda item: item, budget=64)) == items
    assert max(count for count, _ in most) == 4
    assert all(weight <= 64 or count == 1 for count, weight in most)


def test_ahead_takes_items_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = ahead(items(), str, calls=3)
    next(results)

    assert len(taken) <= 5


def test_ahead_raises_what_work_raises_where_its_turn_is() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise StorageError("two")
        return item

    results = ahead(range(9), work)

    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(StorageError, match="two"):
        next(results)


@pytest.mark.parametrize(("slow_read_s", "is_slow"), [(0.0, True), (60.0, False)])
def test_files_of_a_slow_disk_are_read_ahead_and_those_of_a_fast_one_are_not(
    tmp_path, monkeypatch, slow_read_s, is_slow
):
    names = [f"{number:02}.jpg" for number in range(20)]
    write_images(tmp_path, *names)
    readers = set()
    read = images_module._read

    def noted(*arguments):
        readers.add(threading.get_ident())
        return read(*arguments)

    monkeypatch.setattr(images_module, "_read", noted)
    monkeypatch.setattr(images_module, "SLOW_READ_S", slow_read_s)

    samples, _ = read_all(source_of(tmp_path))

    assert [sample.key for sample in samples] == names
    assert bool(readers - {threading.get_ident()}) is is_slow


def test_tars_are_read_through_the_door(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(images(2)))
    BAD_TARS["cut-inside-data"].write(tmp_path)

    samples, notes = read_all(source_of(tmp_path))

    assert [(s.shard, s.key) for s in samples] == [
        *(("a.tar", key) for key in keys(0, 1)),
        *(("broken.tar", key) for key in keys(0, 1, 2)),
    ]
    assert notes.by_shard["a.tar"].missing is None
    assert "truncated inside 00003.jpg" in (notes.by_shard["broken.tar"].missing or "")
    assert notes.by_shard["a.tar"].bytes_read == (tmp_path / "a.tar").stat().st_size


def test_a_limit_leaves_the_rest_unread_and_still_notes(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([*images(200), ("z.jpg", bytes(3_000_000))]))
    source = source_of(tmp_path)
    [piece] = slices(source)
    notes = Notes()

    samples = read_unit(settings_of(source.base, source.format), Unit(0, (replace(piece, limit=3),)), notes.add)

    assert [s.key for s in samples] == list(keys(0, 1, 2))
    assert 0 < notes.by_shard["a.tar"].bytes_read < 20_000


def test_a_shard_that_changed_since_it_was_planned_is_an_error_that_names_it(tmp_path: Path) -> None:
    for name, content in (("a.tar", tar_bytes(images(2))), ("b.parquet", parquet_bytes())):
        (tmp_path / name).write_bytes(content)
        source = open_source([str(tmp_path / name)], SourceFormat.AUTO)
        planned = list(slices(source))
        (tmp_path / name).write_bytes(content + b"more")

        with pytest.raises(StorageError, match=f"{name} has changed since the run was planned: its size was"):
            list(read_unit(settings_of(source.base, source.format), Unit(0, tuple(planned)), Notes().add))


def test_a_shard_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    settings = settings_of(open_storage(str(tmp_path)), SourceFormat.WEBDATASET)

    with pytest.raises(StorageError, match=r"cannot read .*/gone\.tar: it does not exist"):
        list(read_unit(settings, Unit(0, (Slice("gone.tar", 1, ""),)), Notes().add))


def test_only_large_parquet_files_are_opened_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet_bytes()
    (tmp_path / "small.parquet").write_bytes(parquet_bytes(rows_per_group=100)[:-9])
    (tmp_path / "large.parquet").write_bytes(content)
    (tmp_path / "larger-but-broken.parquet").write_bytes(content + b"?")
    for module in (reader, parquet):
        monkeypatch.setattr(module, "PIECE_BYTES", len(content) - 1)

    planned = [(piece.shard, piece.start, piece.stop) for piece in slices(source_of(tmp_path))]

    assert planned == [
        ("large.parquet", 0, 3), ("large.parquet", 3, 4), ("larger-but-broken.parquet", 0, -1),
        ("small.parquet", 0, -1),
    ]  # fmt: skip


def test_pieces_of_large_files_are_read_as_units_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.parquet").write_bytes(parquet_bytes())
    for module in (reader, parquet):
        monkeypatch.setattr(module, "PIECE_BYTES", 20_000)
    source = source_of(tmp_path)
    settings = settings_of(source.base, source.format)

    units = list(cut_units(slices(source)))
    rows = [[s.key for s in read_unit(settings, unit, Notes().add)] for unit in units]

    assert rows == [[str(i) for i in range(first, first + 5)] for first in range(0, 20, 5)]


def config_of(folder: Path, **options: Any) -> LabelConfig:
    return LabelConfig(source=(str(folder),), output="out", **options)


def test_columns_are_settled_by_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    BAD_PARQUETS["parquet-cut"].write(tmp_path)
    image = pa.array(image_rows(2), pa.binary())
    (tmp_path / "c.parquet").write_bytes(parquet_bytes({"image": image, "id": [1, 2], "text": ["a", "b"]}))
    (tmp_path / "d.parquet").write_bytes(parquet_bytes({"other": image}))

    columns = columns_of(source_of(tmp_path), config_of(tmp_path, key_column="id", carry=("text",)))
    samples, notes = read_all(source_of(tmp_path), columns=columns)

    assert columns == ParquetColumns("image", "id", (pa.field("text", pa.string()),))
    assert [(s.shard, s.key, s.carried) for s in samples] == [
        ("c.parquet", "1", ("a",)), ("c.parquet", "2", ("b",)),
    ]  # fmt: skip
    assert "unreadable Parquet" in (notes.by_shard["broken.parquet"].missing or "")
    assert "--image-column image: there is no such column" in (notes.by_shard["d.parquet"].missing or "")


def test_a_source_of_nothing_but_broken_files_is_still_read(tmp_path: Path) -> None:
    BAD_PARQUETS["parquet-cut"].write(tmp_path)
    source = source_of(tmp_path)

    columns = columns_of(source, config_of(tmp_path))
    samples, notes = read_all(source, columns=columns)

    assert columns == ANY_COLUMNS
    assert samples == []
    assert "unreadable Parquet" in (notes.by_shard["broken.parquet"].missing or "")
    with pytest.raises(SourceError, match="--carry: none of the first"):
        columns_of(source, config_of(tmp_path, carry=("text",)))


def test_columns_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(images(1)))

    assert columns_of(source_of(tmp_path), config_of(tmp_path)) == ANY_COLUMNS
    with pytest.raises(ConfigError, match="are for Parquet; SOURCE is webdataset"):
        columns_of(source_of(tmp_path), config_of(tmp_path, key_column="id"))


def test_a_carried_column_may_not_take_the_name_of_one_of_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"image": pa.array(image_rows(1), pa.binary()), "label": [1]}))

    with pytest.raises(ConfigError, match="--carry label: the output has a column of that name already"):
        columns_of(source_of(tmp_path), config_of(tmp_path, carry=("label",)), taken=("label",))
