"""A real S3 server: right bytes, right names, and few calls (a proxy counts them)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest

from models.decode.decode import ImageLimits
from pipeline.config import SourceFormat
from pipeline.sources.reader import slices
from pipeline.sources.source import open_source
from pipeline.storage.listing import SINGLE_LOOKUPS
from pipeline.storage.storage import open_storage
from tests.support.s3_place import Place, read_all, source_of
from tests.support.s3_server import (
    KEY_ID,
    FaultProxy,
    S3Server,
    share_of_faults,
)
from tests.support.shard_factory import images, noise, parquet_bytes, tar_bytes

MIB = 2**20


@pytest.mark.parametrize("folder", ["_shardlabel", "my data/é", "a+b&c=d%20/x"])
def test_deleting_a_file_leaves_the_others_of_its_folder(proxy: FaultProxy, place: Place, folder: str) -> None:
    storage = place.storage
    names = [f"{folder}/{name}" for name in ("commits/1", "commits/2 é%", "lease.json", "plan/plan.json")]
    for name in names:
        storage.write_bytes(name, b"x")
    storage.write_bytes("part", b"x")
    proxy.forget()

    storage.delete(names[2])
    storage.delete(names[1])
    storage.delete("part")

    assert Counter(a.call.method for a in proxy.calls) == {"DELETE": 3}
    assert [file.path for file in storage.list(recursive=True)] == [names[0], names[3]]
    assert [file.path for file in storage.list(f"{folder}/commits")] == [names[0]]


def test_storage_travels_to_other_processes(place: Place) -> None:
    place.put("a", b"content")
    storage = place.storage
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}

    code = f"import pickle; print(pickle.loads({pickle.dumps(storage)!r}).read_bytes('a'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)

    assert done.stdout.strip() == "b'content'", done.stderr


def test_options_and_keys_may_stand_in_the_uri(store: S3Server, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put("a", b"content")
    for name in store.environment():
        monkeypatch.delenv(name)
    server = f"endpoint_override=127.0.0.1:{store.port}&scheme=http"

    storage = open_storage(f"s3://{KEY_ID}:shardlabel-test-secret@{place.uri.removeprefix('s3://')}?{server}")

    assert storage.read_bytes("a") == b"content"
    assert storage.uri == place.uri


def test_a_small_object_is_one_put(proxy: FaultProxy, place: Place) -> None:
    storage = place.storage

    storage.write_bytes("commits/a.jsonl", b"x" * 10_000)

    assert [a.call.method for a in proxy.calls] == ["PUT"]
    assert storage.read_bytes("commits/a.jsonl") == b"x" * 10_000
    assert [a.call.method for a in proxy.calls] == ["PUT", "GET"]


def test_a_large_object_is_read_by_one_get(proxy: FaultProxy, place: Place) -> None:
    content = noise(0, 20 * MIB)
    place.put("big.tar", content)

    with place.storage.open_stream("big.tar") as stream:
        parts = list(iter(lambda: stream.read(100_000), b""))

    assert b"".join(parts) == content
    assert (proxy.count("GET"), proxy.count("HEAD")) == (1, 1)
    assert sum(proxy.bytes_by_object().values()) == len(content)


def test_members_that_are_not_wanted_are_not_fetched(proxy: FaultProxy, place: Place) -> None:
    place.put("a.tar", tar_bytes([("a.jpg", bytes(64 * MIB)), ("b.jpg", b"image")]))

    samples = read_all(source_of(place), limits=ImageLimits(max_image_bytes=MIB))

    assert [(s.key, s.status) for s in samples] == [("a", "too_large"), ("b", None)]
    assert sum(proxy.bytes_by_object().values()) < 20 * MIB


def test_a_brace_range_costs_one_listing_and_not_a_call_per_file(proxy: FaultProxy, place: Place) -> None:
    for i in range(300):
        place.put(f"{i:03d}.tar", b"x")
    source = source_of(place, "{000..299}.tar")
    list(source.files())  # the listing that open_source began
    proxy.forget()

    names = [file.shard for file in source.files()]

    assert names == [f"{i:03d}.tar" for i in range(300)]
    assert len(proxy.calls) <= SINGLE_LOOKUPS + 4


def test_a_few_files_are_looked_up_without_listing_their_folder(proxy: FaultProxy, place: Place) -> None:
    for i in range(3):
        place.put(f"{i}.tar", b"x")
    source = source_of(place, "{0..2}.tar")
    list(source.files())  # the listing that open_source began
    proxy.forget()

    assert len(list(source.files())) == 3
    assert proxy.count("HEAD") == 4  # one of them of the pattern itself
    assert all(a.call.query["prefix"] == [f"{place.name}/{{0..2}}.tar/"] for a in proxy.calls if a.call.is_listing)


def test_a_folder_with_folders_is_listed_by_them_in_the_order_of_paths(proxy: FaultProxy, place: Place) -> None:
    names = [f"{folder}/{i}.jpg" for folder in ("b", "a", "a-b", "a/deep/deeper") for i in range(20)]
    for name in [*names, "a.jpg", "a0.jpg", "_x/y.jpg", "b/.hidden/z.jpg", "b/notes.txt"]:
        place.put(name, b"x")
    source = source_of(place)
    list(source.files())  # the listing that open_source began
    proxy.forget()

    found = [file.shard for file in source.files()]

    assert found == sorted([*names, "a.jpg", "a0.jpg"])
    assert (
        proxy.count("GET", listing=True) <= 7
    )  # the name as a file, as a folder; itself; what is in it; and a late one
    assert proxy.count("GET") == 0


def test_a_list_in_storage_names_files_in_storage(place: Place) -> None:
    for name in ("x/a.tar", "x/b.tar", "y/c d.tar"):
        place.put(name, b"x")
    place.put("list.txt", f"{place.uri}/y/c d.tar\n{place.uri}/x/*.tar\n".encode())

    source = open_source([f"@{place.uri}/list.txt"], SourceFormat.AUTO)

    assert [file.shard for file in source.files()] == ["y/c d.tar", "x/a.tar", "x/b.tar"]
    assert source.base.uri == place.uri


@pytest.mark.parametrize("name", ["x[1].tar", "y{1,2}.tar", "%20.tar", "a#b.tar", "was?.tar", "*.tar", "a b&c=d.tar"])
def test_a_name_that_exists_is_that_object_whatever_its_characters(place: Place, name: str) -> None:
    for other in (name, "x1.tar", "y1.tar", "wasX.tar"):
        place.put(other, b"x")

    assert [file.shard for file in source_of(place, name).files()] == [name]


def test_etags_of_a_plan_agree_with_those_of_reading(place: Place) -> None:
    place.put("a.tar", tar_bytes(images(2)))
    listed = list(slices(source_of(place)))

    assert listed == list(slices(source_of(place, "a.tar")))
    assert listed[0].etag
    assert len(read_all(source_of(place), listed)) == 2


def test_a_part_of_a_parquet_file_costs_that_part(proxy: FaultProxy, place: Place) -> None:
    rows = pa.array([noise(i, MIB) for i in range(24)], pa.binary())
    place.put("a.parquet", parquet_bytes({"image": rows}, rows_per_group=4, codec="none"))
    source = source_of(place)
    [piece] = slices(source)
    proxy.forget()

    samples = read_all(source, [replace(piece, start=2, stop=3)])

    assert [s.key for s in samples] == ["8", "9", "10", "11"]
    assert [s.data for s in samples] == [noise(i, MIB) for i in range(8, 12)]
    assert 4 * MIB < sum(proxy.bytes_by_object().values()) < 5 * MIB
    assert proxy.count("GET") < 12


def test_loose_images_come_in_order_however_their_requests_end(proxy: FaultProxy, place: Place) -> None:
    names = [f"{i:03d}.jpg" for i in range(60)]
    for name in names:
        place.put(name, name.encode())
    source = source_of(place)
    pieces = list(slices(source))
    place.remove("030.jpg")
    proxy.rule = share_of_faults(0.2, seed=1)

    samples = read_all(source, pieces)

    assert [s.key for s in samples] == names
    assert [s.key for s in samples if s.data != s.key.encode()] == ["030.jpg"]
    assert (samples[30].status, samples[30].error) == ("empty", "the file is gone since the run was planned")
