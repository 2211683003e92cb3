"""Shards of some kB that expand to MB or GB, each made by a function: a reader must bound memory before it allocates it.

Each shard is made on demand, most of them instantly; none is larger than 4 MB.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.shard_factory import BLOCK, jpeg, raw_header

MIB = 2**20
BODY = b"n" * (MIB - 200)
# Names of the key column, and of a column for `--carry`, in the files that have them.
KEY, CARRIED = "id", "text"


@cache
def _packed(piece: bytes) -> bytes:
    return gzip.compress(piece, 9, mtime=0)


def packed(pieces: Iterable[bytes]) -> bytes:
    """Return a gzip with one member for each piece; repeated pieces are compressed only once."""
    return b"".join(_packed(piece) for piece in pieces)


def padded(content: bytes) -> bytes:
    """Pad the content to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    """Return a PAX header and its content."""
    content = b""
    for name, value in records.items():
        body = b" " + name + b"=" + value + b"\n"
        size = len(body)
        while size != len(body) + len(str(size)):
            size = len(body) + len(str(size))
        content += str(size).encode() + body
    return raw_header(b"pax", len(content), kind) + padded(content)


def one_image(name: bytes = b"good.jpg") -> bytes:
    """Return a tar member with one image."""
    return raw_header(name, len(jpeg())) + padded(jpeg())


END = bytes(1024)


def pax_size_of_5000_digits() -> bytes:
    return one_image() + pax({b"size": b"9" * 5000}) + one_image(b"b.jpg") + END


def pax_size_of_5000_zeros() -> bytes:
    return pax({b"size": b"0" * 5000 + str(len(jpeg())).encode()}) + one_image() + END


def pax_length_of_5000_digits() -> bytes:
    content = b"9" * 5000 + b" path=a\n"
    return raw_header(b"pax", len(content), b"x") + padded(content) + one_image() + END


def _pax_of_mib(before: bytes, after: bytes, kind: bytes = b"x") -> Iterator[bytes]:
    """Yield a PAX header with one record: `before`, BODY and `after`; BODY is the same in all."""
    size = len(before) + len(BODY) + len(after) + 1
    size += 1 + len(str(size + 8))
    yield raw_header(b"pax", size, kind) + f"{size} ".encode() + before
    yield BODY
    yield after + b"\n" + bytes(-size % BLOCK)


def _sparse_records(kind: bytes, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield from _pax_of_mib(b"GNU.sparse.%06d=" % number, b"", kind)
    yield one_image() + END


def unique_sparse_records(count: int = 1600) -> bytes:
    return packed(_sparse_records(b"x", count))


def unique_global_sparse_records(count: int = 1600) -> bytes:
    return packed(_sparse_records(b"g", count))


def _long_names(before: bytes, after: bytes, count: int) -> Iterator[bytes]:
    yield one_image()
    for number in range(count):
        yield from _pax_of_mib(b"path=" + before.replace(b"#", b"%06d" % number), after.replace(b"#", b"%06d" % number))
        yield one_image(b"short.jpg")
    yield END


def pax_names_of_1_mib(count: int = 1500) -> bytes:
    return packed(_long_names(b"#", b".jpg", count))


def names_alike_for_1_mib(count: int = 50) -> bytes:
    return packed(_long_names(b"", b"#.jpg", count))


def folders_of_1_mib(count: int = 300) -> bytes:
    return packed(_long_names(b"#", b"/", count))


def extensions_of_1_mib(count: int = 300) -> bytes:
    return packed(_long_names(b"a.#", b"", count))


def gnu_names_of_1_mib(count: int = 300) -> bytes:
    def pieces() -> Iterator[bytes]:
        yield one_image()
        for number in range(count):
            size = 6 + len(BODY) + 5
            yield raw_header(b"././@LongLink", size, b"L") + b"%06d" % number
            yield BODY
            yield b".jpg\0" + bytes(-size % BLOCK) + one_image(b"short.jpg")
        yield END

    return packed(pieces())


def names_that_are_not_utf_8() -> bytes:
    name = b"\xff" * (MIB - 100) + b".jpg"
    return packed([pax({b"path": name}), one_image(b"short.jpg"), one_image(), END])


def keys_that_come_again(count: int = 1_000) -> bytes:
    def pieces() -> Iterator[bytes]:
        yield one_image()
        name = b"k" * 3000 + b".jpg"
        for number in range(count):
            own = b"%06d" % number + name
            yield (raw_header(b"L", len(own), b"L") + padded(own) + raw_header(b"x", 0) + raw_header(b"y.jpg", 0)) * 9
        yield END

    return packed(pieces())


def many_empty_members(count: int = 200) -> bytes:
    def pieces() -> Iterator[bytes]:
        yield one_image()
        block = raw_header(b"d/", 0, b"5") * 1000
        for _ in range(count):
            yield block
        yield END

    return packed(pieces())


def many_side_members_of_one_key(count: int = 100) -> bytes:
    members = b"".join(raw_header(b"a.%04d" % number, 0) for number in range(1_000))
    return packed([*[members] * count, one_image(), END])


def many_images_of_the_largest_size(count: int = 24) -> bytes:
    """24 images of 60 MiB each: in one batch they would take 1.5 GB."""

    def pieces() -> Iterator[bytes]:
        yield one_image()
        for i in range(count):
            yield raw_header(b"%03d.jpg" % i, 60 * MIB)
            for _ in range(60):
                yield bytes(MIB)
        yield END

    return packed(pieces())


def gzip_of_zeros(count: int = 512) -> bytes:
    return packed([bytes(MIB)] * count)


def gzip_of_gzip() -> bytes:
    return gzip.compress(packed([bytes(MIB)] * 512))


def _table(columns: dict[str, pa.Array], **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **{"compression": "zstd", "write_statistics": False, **options})
    return buffer.getvalue()


def _good(rows: int) -> pa.Array:
    return pa.array([jpeg()] * rows, pa.binary())


def _streamed(rows: int, make: Callable[[int], dict[str, pa.Array]], **options: object) -> bytes:
    """Return a file of one row group, whose rows are made one at a time."""
    buffer = io.BytesIO()
    first = pa.table(make(0))
    settings = {"compression": "zstd", "write_statistics": False, "use_dictionary": False, **options}
    with pq.ParquetWriter(buffer, first.schema, **settings) as writer:
        for row in range(rows):
            writer.write_batch(pa.table(make(row)).to_batches()[0])
    return buffer.getvalue()


def dictionary_of_one_image_of_2_mb(rows: int = 3000) -> bytes:
    image = jpeg() + bytes(2_000_000)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([image], pa.binary()))
    return _table({"image": column})


def dictionary_beside_a_schema_that_hides_it(rows: int = 3000) -> bytes:
    image = jpeg() + bytes(2_000_000)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([image], pa.binary()))
    return _table({"image": column}, store_schema=False)


def dictionary_in_a_struct(rows: int = 3000) -> bytes:
    image = jpeg() + bytes(2_000_000)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([image], pa.binary()))
    column = pa.StructArray.from_arrays([values, pa.array([None] * rows, pa.string())], ["bytes", "path"])
    return _table({"image": column}, store_schema=False)


def one_value_of_1_gb(size: int = 1_000_000_000) -> bytes:
    return _table({"image": pa.array([bytes(size)], pa.binary())}, use_dictionary=False)


def values_of_60_mib(count: int = 24) -> bytes:
    return _streamed(count, lambda row: {"image": pa.array([bytes(60 * MIB)], pa.binary())})


def keys_of_1_mib(count: int = 600) -> bytes:
    def row(number: int) -> dict[str, pa.Array]:
        return {"image": _good(1), KEY: pa.array([f"{number:06d}" + "k" * MIB])}

    return _streamed(count, row)


def one_key_of_1_mib_600_times() -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["k" * MIB]))
    return _table({"image": _good(600), KEY: column}, store_schema=False)


def delta_keys_of_1_mib(count: int = 600) -> bytes:
    def row(number: int) -> dict[str, pa.Array]:
        return {"image": _good(1), KEY: pa.array(["k" * MIB + f"{number:06d}"])}

    return _streamed(count, row, column_encoding={KEY: "DELTA_BYTE_ARRAY", "image": "PLAIN"})


def carried_text_of_2_mb(rows: int = 3000) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["c" * 2_000_000]))
    return _table({"image": _good(rows), CARRIED: column}, store_schema=False)


def carried_list_of_20_million() -> bytes:
    count = 20_000_000
    zeros = pa.Array.from_buffers(pa.int8(), count, [None, pa.py_buffer(bytes(count))])
    return _table({"image": _good(1), CARRIED: pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), zeros)})


def footer_of_many_columns() -> bytes:
    """A footer of some 1 MB, since a footer is never compressed."""
    columns = {f"c{i}": pa.array([1], pa.int8()) for i in range(9_000)}
    return _table({"image": _good(1), **columns}, use_dictionary=False, store_schema=False)


def footer_that_claims_2_gb() -> bytes:
    return b"PAR1" + bytes(1000) + struct.pack("<i", 2**31 - 1) + b"PAR1"


def many_row_groups(count: int = 3_000) -> bytes:
    return _table({"image": _good(count)}, row_group_size=1, use_dictionary=False)


def nested_100_deep() -> bytes:
    kind: pa.DataType = pa.int8()
    for _ in range(100):
        kind = pa.list_(kind)
    return _table({"image": _good(1), CARRIED: pa.nulls(1, kind)})


TARS: dict[str, Callable[[], bytes]] = {
    f"{make.__name__}.tar": make
    for make in (
        pax_size_of_5000_digits, pax_size_of_5000_zeros, pax_length_of_5000_digits, unique_sparse_records,
        unique_global_sparse_records, pax_names_of_1_mib, gnu_names_of_1_mib, names_alike_for_1_mib,
        names_that_are_not_utf_8, folders_of_1_mib, extensions_of_1_mib, keys_that_come_again, many_empty_members,
        many_side_members_of_one_key, many_images_of_the_largest_size, gzip_of_zeros, gzip_of_gzip,
    )
}  # fmt: skip
PARQUETS: dict[str, Callable[[], bytes]] = {
    f"{make.__name__}.parquet": make
    for make in (
        dictionary_of_one_image_of_2_mb, dictionary_beside_a_schema_that_hides_it, dictionary_in_a_struct,
        one_value_of_1_gb, values_of_60_mib, footer_of_many_columns,
        footer_that_claims_2_gb, many_row_groups,
    )
}  # fmt: skip
# Files with a column KEY, and files with a column CARRIED. They need separate runs: other files lack these columns.
KEYED: dict[str, Callable[[], bytes]] = {
    f"{make.__name__}.parquet": make for make in (keys_of_1_mib, one_key_of_1_mib_600_times, delta_keys_of_1_mib)
}
CARRYING: dict[str, Callable[[], bytes]] = {
    f"{make.__name__}.parquet": make for make in (carried_text_of_2_mb, carried_list_of_20_million, nested_100_deep)
}

# Smaller counts, so that all are read within seconds.
_LESS: dict[str, int] = {
    "unique_sparse_records": 300, "unique_global_sparse_records": 300, "pax_names_of_1_mib": 100,
    "gnu_names_of_1_mib": 50, "folders_of_1_mib": 20, "extensions_of_1_mib": 20, "names_alike_for_1_mib": 20,
    "keys_that_come_again": 100, "many_empty_members": 10, "many_side_members_of_one_key": 10,
    "many_images_of_the_largest_size": 4, "gzip_of_zeros": 64, "one_value_of_1_gb": 150_000_000,
    "values_of_60_mib": 8, "keys_of_1_mib": 200, "delta_keys_of_1_mib": 200,
    "dictionary_of_one_image_of_2_mb": 400, "dictionary_beside_a_schema_that_hides_it": 400,
    "dictionary_in_a_struct": 400, "carried_text_of_2_mb": 400, "many_row_groups": 300,
}  # fmt: skip
LESS: dict[str, Callable[[], bytes]] = {
    name: partial(make, _LESS[make.__name__]) if make.__name__ in _LESS else make
    for name, make in {**TARS, **PARQUETS, **KEYED, **CARRYING}.items()
}


def write(folder: Path, shards: dict[str, Callable[[], bytes]]) -> None:
    """Write each shard under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in shards.items():
        (folder / name).write_bytes(make())
