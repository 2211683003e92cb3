"""Shards of some kB that claim GB: what reading them takes stays small, and the good rows beside them are read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.decode.decode import ImageLimits
from pipeline.sources.parquet import read_parquet
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.sample import MAX_KEY_BYTES, Sample, ShardNotes
from pipeline.sources.webdataset import read_webdataset
from pipeline.storage.storage import open_storage
from tests.support.hostile_shards import CARRIED, CARRYING, KEY, KEYED, LESS, TARS
from tests.support.shard_factory import jpeg

# Over what the process had. For Parquet the largest of these values and of its page, twice, and what pyarrow's pool holds
# back in a process that read other files before. (They claim 1 to 5 GB.)
MOST = {".tar": 220 * 2**20, ".parquet": 480 * 2**20}
_TYPES = {"carried_list_of_20_million.parquet": pa.list_(pa.int8())}


def _own(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _samples(path: Path, notes: ShardNotes):
    storage = open_storage(str(path.parent))
    if path.name in TARS:
        with storage.open_stream(path.name) as stream:
            yield from read_webdataset(stream, path.name, notes, ImageLimits())
        return
    carried = (pa.field(CARRIED, _TYPES.get(path.name, pa.string())),) if path.name in CARRYING else ()
    columns = ParquetColumns("image", KEY if path.name in KEYED else None, carried)
    yield from read_parquet(storage.open_random(path.name), path.name, notes, ImageLimits(), columns)


def _summary(sample: Sample) -> tuple[str, str | None, bool]:
    return sample.key, sample.status, (sample.data or b"").startswith(jpeg())


# Python 3.12 and later; the child here takes no lock of another thread.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def read_apart(path: Path) -> tuple[list[tuple[str, str | None, bool]], str | None, int]:
    """Read a shard in a process of its own; return its rows, what was lost, and the memory it took."""
    inside, outside = os.pipe()
    child = os.fork()
    if not child:
        notes, before = ShardNotes(), _own("VmRSS")
        rows: object = None
        try:
            rows = [_summary(sample) for sample in _samples(path, notes)]
        except BaseException as err:  # the parent tells  # noqa: BLE001
            rows = repr(err)
        with os.fdopen(outside, "wb") as pipe:
            pipe.write(pickle.dumps((rows, notes.missing, _own("VmHWM") - before)))
        os._exit(0)
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(content)


@pytest.mark.parametrize("name", LESS)
def test_reading_a_shard_that_claims_gigabytes_takes_megabytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LESS[name]())

    rows, missing, memory = read_apart(path)

    assert isinstance(rows, list), rows
    assert memory < MOST[path.suffix], memory
    keys = [key for key, _, _ in rows]
    assert len(set(keys)) == len(keys)
    assert all(len(key.encode()) <= MAX_KEY_BYTES + 8 for key in keys)
    # Whatever is no row is told; only a shard that holds no member at all has neither.
    assert missing is not None or any(image for _, _, image in rows) or name in _NO_GOOD_ROWS
    assert all(image == (status is None) for _, status, image in rows) or name in _ZEROS


# Bytes that are no image, and so no row of the reader's making tells them apart.
_ZEROS = {
    "keys_that_come_again.tar",
    "many_images_of_the_largest_size.tar",
    "values_of_60_mib.parquet",
    "values_that_the_footer_hides.parquet",
}
_NO_GOOD_ROWS = {
    *_ZEROS, "gzip_of_zeros.tar", "unique_sparse_records.tar", "unique_global_sparse_records.tar", *KEYED,
    "one_value_of_1_gb.parquet",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "missing"),
    [
        ("pax_size_of_5000_digits.tar", [("good", None), ("b", "too_large")], "truncated inside b.jpg"),
        ("pax_size_of_5000_zeros.tar", [("good", None)], None),
        ("pax_length_of_5000_digits.tar", [("good", None)], None),
        ("one_value_of_1_gb.parquet", [("0", "too_large")], None),
        ("footer_that_claims_2_gb.parquet", [], "unreadable Parquet"),
    ],
)
def test_what_a_shard_claims_is_told(tmp_path: Path, name: str, rows: list, missing: str | None) -> None:
    (tmp_path / name).write_bytes(LESS[name]())
    notes = ShardNotes()

    found = [(sample.key, sample.status) for sample in _samples(tmp_path / name, notes)]

    assert found == rows
    assert (notes.missing is None) == (missing is None)
    assert (missing or "") in (notes.missing or "")


@pytest.mark.parametrize("key", [None, KEY], ids=["numbered", "keyed"])
def test_rows_of_a_page_that_claims_too_much_are_too_large_and_those_of_other_row_groups_as_ever(tmp_path, key):
    images = [jpeg(), bytes(150_000_000), jpeg(), jpeg()]
    table = pa.table({"image": pa.array(images, pa.binary()), KEY: ["a", "b", "b", "c"]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3, use_dictionary=False, compression="zstd")
    notes = ShardNotes()

    file = open_storage(str(tmp_path)).open_random("x.parquet")
    found = list(read_parquet(file, "x.parquet", notes, ImageLimits(), ParquetColumns("image", key, ())))

    assert [sample.key for sample in found] == (["0", "1", "2", "3"] if key is None else ["a", "b", "b#2", "c"])
    assert [sample.status for sample in found] == ["too_large"] * 3 + [None]
    assert "claims to unpack from" in (found[1].error or "")
    assert notes.missing is None


@pytest.mark.parametrize("name", ["pax_names_of_1_mib.tar", "names_alike_for_1_mib.tar", "keys_of_1_mib.parquet"])
def test_a_name_over_4_kib_is_a_row_with_its_key_cut_and_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LESS[name]())

    rows = [sample for sample in _samples(tmp_path / name, ShardNotes()) if sample.status is not None]

    assert len(rows) == {"pax_names_of_1_mib.tar": 100, "names_alike_for_1_mib.tar": 20}.get(name, 200)
    assert {sample.status for sample in rows} == {"unsupported"}
    assert all("bytes, more than the 4096 allowed; it is cut" in (sample.error or "") for sample in rows)
    assert all(MAX_KEY_BYTES <= len(sample.key) <= MAX_KEY_BYTES + 8 for sample in rows)
