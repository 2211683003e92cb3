"""Keys that object stores allow and paths do not: a row or a note of what is missing, and never the end of a listing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from models.errors import SourceError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.job import run
from pipeline.session.connect import connect
from pipeline.session.local import stop_ray
from pipeline.sources.reader import columns_of, slices
from pipeline.sources.source import open_source
from pipeline.storage import object_listing
from tests.support.object_server import ObjectServer
from tests.support.s3_place import Place, read_all, source_of
from tests.support.s3_server import FaultProxy, share_of_faults
from tests.support.shard_factory import images, parquet_bytes, tar_bytes
from tests.support.tiny_model import colour_jpeg

KINDS = pytest.mark.parametrize("kind", ["s3", "gs", "az"])
# Each store may hold others: moto keeps no line feeds, and Azurite's client and its own listings fail at those of NAMELESS.
EMPTY_SEGMENT = ["b//c", "x//y//z", "w///v"]
NAMELESS = ["c/../d", "./e", "f\x01", "dir\x02/i", "q\x7f//r"]


def odd_names(kind: str) -> list[str]:
    return EMPTY_SEGMENT + (NAMELESS if kind != "az" else []) + (["g\n"] if kind == "gs" else [])


def fill(place: Place, names: list[str], suffix: str = ".jpg") -> list[str]:
    """Put objects that hold their own names; return the names in the order of listings."""
    for name in names:
        place.put(name + suffix, f"{name}{suffix}".encode())
    return sorted(name + suffix for name in names)


@KINDS
def test_a_listing_goes_on_whatever_keys_are_in_it(place: Place, kind: str) -> None:
    names = fill(place, ["a", "b/c", "x/y z+%&<", "é", "z", *odd_names(kind)])

    listed = place.storage.list(recursive=True)

    assert sorted(file.path for file in listed) == names
    assert [file.path for page in place.storage.pages(most=2) for file in page] == [file.path for file in listed]
    assert [(file.size, file.etag) for file in listed if file.path == "a.jpg"] == [
        (5, place.storage.stat("a.jpg").etag)  # type: ignore[union-attr]
    ]


@KINDS
def test_loose_images_with_odd_keys_are_read_or_are_rows_that_say_why(place: Place, kind: str) -> None:
    names = fill(place, ["a", "z", *odd_names(kind)])

    samples = {sample.key: sample for sample in read_all(source_of(place))}

    assert sorted(samples) == names
    for name in ["a", "z", *EMPTY_SEGMENT]:
        assert samples[f"{name}.jpg"].data == f"{name}.jpg".encode()
    for name in set(odd_names(kind)) - set(EMPTY_SEGMENT):
        sample = samples[f"{name}.jpg"]
        assert (sample.data, sample.status) == (None, "unsupported")
        assert sample.error is not None
        assert sample.error.endswith("and cannot be fetched; rename the object")
        assert sample.error.isprintable()


@KINDS
def test_the_listing_of_one_folder_names_odd_objects_and_folders_in_it(place: Place, kind: str) -> None:
    fill(place, ["in/a", "in//b", "in/c/d"])
    fill(place, ["in/f\x01"] if kind != "az" else [])

    files, folders = place.storage.list_folder("in")

    assert [file.path for file in files] == ["in/a.jpg"] + (["in/f\x01.jpg"] if kind != "az" else [])
    assert folders == ["in/", "in/c"]


@KINDS
def test_the_plan_is_the_same_on_each_run_and_through_faults(place: Place, proxy: FaultProxy, kind: str) -> None:
    fill(place, [f"{i:02d}" for i in range(40)])
    fill(place, [f"{i:02d}//x" for i in range(0, 40, 10)])
    calm = list(slices(source_of(place)))
    proxy.rule = share_of_faults(0.5, 5)

    for _ in range(5):
        proxy.forget()
        assert list(slices(source_of(place))) == calm
        assert sum(answered.fault is not None for answered in proxy.calls) > 0
    assert len(calm) == 44


def test_a_listing_without_odd_keys_needs_no_relay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_listing, "relayed_store", None)

    fill(place, ["a", "b/c"])

    assert len(place.storage.list(recursive=True)) == 2


@KINDS
def test_shards_with_odd_keys_are_read_by_name_by_list_and_by_pattern(place: Place, kind: str) -> None:
    for name in ("a.tar", "b//c.tar"):
        place.put(name, tar_bytes(images(2)))
    place.put("list.txt", f"{place.uri}/b//c.tar\n{place.uri}/a.tar\n".encode())

    assert [file.shard for file in source_of(place, "**/*.tar").files()] == ["a.tar", "b//c.tar"]
    assert [file.shard for file in source_of(place, "b/*/*.tar").files()] == ["/c.tar"]
    many = "".join(f"{place.uri}/b//{number}.tar\n" for number in range(20))
    place.put("many.txt", many.encode())
    for number in range(20):
        place.put(f"b//{number}.tar", b"two empty names")
        place.put(f"b/{number}.tar", b"one")
    by_many = open_source([f"@{place.uri}/many.txt"], SourceFormat.AUTO)
    assert [(file.shard, file.size) for file in by_many.files()] == [(f"/{number}.tar", 15) for number in range(20)]
    by_list = open_source([f"@{place.uri}/list.txt"], SourceFormat.AUTO)
    assert [file.shard for file in by_list.files()] == ["b//c.tar", "a.tar"]
    for source in (source_of(place, "**/*.tar"), by_list):
        assert len(read_all(source)) == 4
    assert len(read_all(source_of(place, "b//c.tar"))) == 2


@pytest.mark.parametrize("kind", ["s3", "gs"])
@pytest.mark.parametrize(("name", "content"), [("c.tar", tar_bytes(images(2))), ("c.parquet", parquet_bytes())])
def test_a_shard_that_cannot_be_fetched_loses_its_own_rows_only(place: Place, name: str, content: bytes) -> None:
    for folder in ("..", "a", "b/..", "z"):
        place.put(f"{folder}/{name}", content)

    source = source_of(place)

    assert {sample.shard for sample in read_all(source)} == {f"a/{name}", f"z/{name}"}
    assert columns_of(source, LabelConfig(source=(place.uri,), output="out")).image == (
        "image" if name[2] == "p" else None
    )


def test_a_folder_whose_name_is_no_path_is_an_error_that_says_what_to_do(place: Place) -> None:
    fill(place, ["b//c/d"])

    with pytest.raises(SourceError, match=r"SOURCE s3://.*/b//c is no file, and a folder with `//`.*\(\*\*/\*\.tar\)"):
        source_of(place, "b//c")
    with pytest.raises(SourceError, match=r"SOURCE s3://.*/b/\.\./c.jpg cannot be used: its key has a segment '\.\.'"):
        source_of(place, "b/../c.jpg")
    with pytest.raises(SourceError, match=r"cannot list .*b//c: a folder with `//`"):
        source_of(place, "b//c/*.jpg")


@pytest.fixture
def ray_that_knows_the_store(store: ObjectServer) -> Iterator[None]:
    """Start a local Ray whose workers have the store's keys in their environment."""
    stop_ray()
    connect(None)
    yield
    stop_ray()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_that_knows_the_store")
def test_a_run_labels_what_it_can_says_what_it_cannot_and_appends(
    place: Place, tiny_model: Path, tmp_path: Path
) -> None:
    jpeg = colour_jpeg("red")
    for name in ("a.jpg", "b//c.jpg", "d/../e.jpg"):
        place.put(name, jpeg)
    config = LabelConfig(
        source=(place.uri,), output=str(tmp_path / "out"), model=str(tiny_model), top_k=3, progress="none"
    )

    first = run(config)
    again = run(config)
    place.put("f\x01.jpg", jpeg)
    place.put("f//g.jpg", jpeg)
    appended = run(config.model_copy(update={"append": True}))

    assert (first.images, again.images, appended.images) == (3, 3, 5)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["key"]: (row["status"], row["error"] is None) for row in rows} == {
        "a.jpg": ("ok", True), "b//c.jpg": ("ok", True), "d/../e.jpg": ("unsupported", False),
        "f\x01.jpg": ("unsupported", False), "f//g.jpg": ("ok", True),
    }  # fmt: skip
    assert json.loads((tmp_path / "out/_shardlabel/summary.json").read_text())["images"] == 5
