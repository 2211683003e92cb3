"""Shards made by code, complete and broken, each with the expected result of reading it."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Members = Iterable[tuple[str, bytes]]
BLOCK = 512


def jpeg(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    """Return a small image of one colour."""
    from PIL import Image

    colour = tuple(random.Random(seed).randbytes(3))
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def noise(seed: int, size: int) -> bytes:
    """Return random bytes, which are not an image and do not compress."""
    return random.Random(seed).randbytes(size)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return a member's header."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = size, kind, link
    return header


def tar_bytes(members: Members, *, format: int = tarfile.USTAR_FORMAT, end: bool = True) -> bytes:
    """Return a tar; without `end` it has no end mark."""
    buffer = io.BytesIO()
    archive = tarfile.open(fileobj=buffer, mode="w", format=format)  # noqa: SIM115 (closed only with an end mark)
    for name, content in members:
        archive.addfile(member(name, len(content)), io.BytesIO(content))
    if end:
        archive.close()
    return buffer.getvalue()


def images(count: int = 6, *, first: int = 0) -> list[tuple[str, bytes]]:
    """Return members `00000.jpg`, `00000.cls`, ... of real images."""
    pairs = (((f"{i:05d}.jpg", jpeg(i)), (f"{i:05d}.cls", str(i).encode())) for i in range(first, first + count))
    return [one for pair in pairs for one in pair]


def keys(*numbers: int) -> tuple[str, ...]:
    """Return the keys of `images`."""
    return tuple(f"{i:05d}" for i in numbers)


def header_offset(content: bytes, name: str) -> int:
    """Return the offset of a member's header."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmember(name).offset


def data_offset(content: bytes, name: str) -> int:
    """Return the offset of a member's data."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmember(name).offset_data


def spoil(content: bytes, offset: int, damage: bytes) -> bytes:
    """Overwrite some bytes."""
    return content[:offset] + damage + content[offset + len(damage) :]


def raw_header(name: bytes, size: int | bytes, kind: bytes = b"0") -> bytes:
    """Return a hand-written header block with a valid checksum."""
    digits = size if isinstance(size, bytes) else f"{size:011o}\0".encode()
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\0"
    block[124:136] = digits
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block) + 8 * 32:06o}\0 ".encode()
    return bytes(block)


@dataclass(frozen=True)
class Shard:
    """A file, and the expected result of reading it.

    Attributes:
        name: File name.
        content: Its bytes.
        ok: Keys of the readable images, in order.
        other: Status of the other rows, by key.
        missing: Text that the note about missing data must contain; None if nothing is missing.
    """

    name: str
    content: bytes
    ok: tuple[str, ...] = ()
    other: dict[str, str] = field(default_factory=dict)
    missing: str | None = None

    def write(self, folder: Path) -> Path:
        """Write it into a folder."""
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def _bad_tars() -> dict[str, Shard]:
    whole = tar_bytes(images())
    third, fourth = header_offset(whole, "00002.jpg"), header_offset(whole, "00003.jpg")
    inside = data_offset(whole, "00003.jpg") + 100
    unended = tar_bytes(images(), end=False)
    gz = gzip.compress(whole, mtime=0)
    # Bytes that deflate compresses and does not store: damage to stored bytes only shows in the checksum.
    noisy = [(f"{i:05d}.jpg", jpeg(i) + noise(i, 2000).hex().encode()) for i in range(6)]
    packed = gzip.compress(tar_bytes(noisy), mtime=0)
    huge = raw_header(b"00006.jpg", 8**11 - 1)
    name = "broken.tar"
    return {
        "zero-bytes": Shard(name, b"", missing="0 bytes"),
        "only-end-marks": Shard(name, bytes(1024)),
        "garbage": Shard(name, noise(1, 20_000), missing="no tar"),
        "text": Shard(name, b"<html>404 Not Found</html>\n", missing="no tar"),
        "zip": Shard(name, b"PK\x03\x04" + noise(2, 4000), missing="no tar"),
        "cut-at-member": Shard(name, whole[:fourth], keys(0, 1, 2), missing="no end mark"),
        "cut-inside-header": Shard(
            name, whole[: fourth + 200], keys(0, 1, 2), missing="inside the header behind 00002"
        ),
        "cut-inside-data": Shard(name, whole[:inside], keys(0, 1, 2), missing="inside 00003.jpg: 100 of"),
        # The image would have followed, so there must be no row that says that the sample has none.
        "cut-behind-a-label": Shard(
            name,
            tar_bytes([("a.jpg", jpeg()), ("b.cls", b"1"), ("b.jpg", jpeg())])[:3200],
            ("a",),
            missing="inside b.jpg",
        ),
        "cut-inside-padding": Shard(name, unended[:-3], keys(*range(6)), missing="no end mark"),
        "no-end-mark": Shard(name, unended, keys(*range(6)), missing="no end mark"),
        "one-end-block": Shard(name, unended + bytes(BLOCK), keys(*range(6))),
        "damaged-header": Shard(
            name, spoil(whole, third + 10, b"\xff" * 20), keys(0, 1, 3, 4, 5), {"00002": "empty"}, missing="damaged"
        ),
        "zeroed-header": Shard(
            name, spoil(whole, third, bytes(BLOCK)), keys(0, 1, 3, 4, 5), {"00002": "empty"}, missing="damaged"
        ),
        "damaged-first-header": Shard(
            name, spoil(whole, 0, noise(3, BLOCK)), keys(*range(1, 6)), {"00000": "empty"}, missing="the beginning"
        ),
        "damaged-to-the-end": Shard(
            name, spoil(whole, fourth, noise(4, len(whole) - fourth)), keys(0, 1, 2), missing="damaged"
        ),
        "garbage-behind-end": Shard(name, whole + noise(5, 700), keys(*range(6)), missing="behind the end mark"),
        "huge-size": Shard(
            name, unended + huge + b"x" * 900, keys(*range(6)), {"00006": "too_large"}, missing="inside 00006.jpg"
        ),
        "negative-size": Shard(
            name, unended + raw_header(b"00006.jpg", b"\xff" * 12) + bytes(1024), keys(*range(6)), missing="damaged"
        ),
        "huge-pax-header": Shard(
            name,
            unended + raw_header(b"pax", 2**33, b"x") + b"30 path=" + bytes(2000),
            keys(*range(6)),
            missing="was passed over",
        ),
        "gzip-cut": Shard("broken.tar.gz", packed[: len(packed) // 2], keys(0, 1), missing="gzip stream has no end"),
        "gzip-damaged": Shard(
            "broken.tar.gz", spoil(packed, len(packed) // 2, b"\xff" * 64), keys(0, 1, 2), missing="gzip stream"
        ),
        "gzip-wrong-crc": Shard(
            "broken.tar.gz", spoil(gz, len(gz) - 8, b"\0\1\2\3"), keys(*range(6)), missing="checksum"
        ),
        "gzip-garbage-behind": Shard("broken.tar.gz", gz + b"garbage", keys(*range(6)), missing="are no gzip"),
        "gzip-header-only": Shard("broken.tar.gz", gz[:6], missing="gzip stream has no end"),
    }


def _odd_tars() -> dict[str, Shard]:
    first, second = tar_bytes(images(2)), tar_bytes(images(2, first=2))
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as archive:
        archive.addfile(member("folder", kind=tarfile.DIRTYPE))
        archive.addfile(member("00000.jpg", len(jpeg(0))), io.BytesIO(jpeg(0)))
        archive.addfile(member("00001.jpg", kind=tarfile.SYMTYPE, link="00000.jpg"))
        archive.addfile(member("00002.jpg", kind=tarfile.LNKTYPE, link="00000.jpg"))
        archive.addfile(member("00003.jpg", kind=tarfile.FIFOTYPE))
    name = "odd.tar"
    return {
        "links": Shard(name, links.getvalue(), keys(0), dict.fromkeys(keys(1, 2, 3), "unsupported")),
        "concatenated": Shard(name, first + second, keys(0, 1, 2, 3)),
        "gzip-in-two": Shard("odd.tar.gz", gzip.compress(first) + gzip.compress(second), keys(0, 1, 2, 3)),
        "gzip-split-anywhere": Shard(
            "odd.tar.gz", gzip.compress(first[:700]) + gzip.compress(first[700:]) + bytes(100), keys(0, 1)
        ),
        "gzip-without-its-name": Shard(name, gzip.compress(first), keys(0, 1)),
        "tar-named-gz": Shard("odd.tar.gz", first, keys(0, 1)),
        "labels-first": Shard(name, tar_bytes([("a.json", b"{}"), ("a.cls", b"1"), ("a.jpg", jpeg())]), ("a",)),
        "labels-apart": Shard(
            name, tar_bytes([("a.jpg", jpeg()), ("b.jpg", jpeg()), ("a.cls", b"1"), ("b.cls", b"2")]), ("a", "b")
        ),
        "no-image": Shard(name, tar_bytes([("a.cls", b"1"), ("b.jpg", jpeg())]), ("b",), {"a": "empty"}),
        "several-images": Shard(
            name, tar_bytes([("a.left.jpg", jpeg()), ("a.right.png", jpeg()), ("b.jpg", jpeg())]),
            ("a.left.jpg", "a.right.png", "b"),
        ),
        "same-name-twice": Shard(name, tar_bytes([("a.jpg", jpeg(1)), ("a.jpg", jpeg(2))]), ("a.jpg", "a.jpg#2")),
        "key-comes-back": Shard(
            name, tar_bytes([("a.jpg", jpeg()), ("b.jpg", jpeg()), ("a.jpg", jpeg())]), ("a", "b", "a#2")
        ),
        "absolute-and-up": Shard(
            name, tar_bytes([("/etc/a.jpg", jpeg()), ("../../b.jpg", jpeg())]), ("/etc/a", "../../b")
        ),
        "hidden": Shard(name, tar_bytes([("x/._a.jpg", b"Mac"), ("x/a.jpg", jpeg()), ("x/README", b"hi")]), ("x/a",)),
        "upper-case": Shard(name, tar_bytes([("A.JPG", jpeg()), ("b.Jpeg", jpeg())]), ("A", "b")),
        "dots-in-folders": Shard(name, tar_bytes([("v1.0/a.jpg", jpeg()), ("./b.jpg", jpeg())]), ("v1.0/a", "./b")),
        "empty-image": Shard(name, tar_bytes([("a.jpg", b""), ("b.jpg", jpeg())]), ("a", "b")),
        "not-utf-8": Shard(name, _with_raw_names(b"caf\xe9.jpg", b"caf\xe8.jpg"), ("caf\\xe9", "caf\\xe8")),
        "long-gnu-names": Shard(name, _long_names(tarfile.GNU_FORMAT), (f"{'x' * 150}/{'y' * 150}",)),
        "long-pax-names": Shard(name, _long_names(tarfile.PAX_FORMAT), (f"{'x' * 150}/{'y' * 150}",)),
        "sparse": Shard(name, raw_header(b"a.jpg", 0, b"S") + tar_bytes([("b.jpg", jpeg())]), ("b",),
                        {"a": "unsupported"}),
    }  # fmt: skip


def _with_raw_names(*names: bytes) -> bytes:
    content = jpeg()
    padding = bytes(-len(content) % BLOCK)
    return b"".join(raw_header(name, len(content)) + content + padding for name in names) + bytes(1024)


def _long_names(format: int) -> bytes:
    return tar_bytes([(f"{'x' * 150}/{'y' * 150}.jpg", jpeg())], format=format)


# Bad: some or all data are missing. Odd: valid, and read completely.
BAD_TARS: dict[str, Shard] = _bad_tars()
ODD_TARS: dict[str, Shard] = _odd_tars()


ROW_GROUPS, ROWS = 4, 5  # of `parquet_bytes`: 20 rows, keys 0 to 19


def image_rows(count: int, *, first: int = 0) -> list[bytes]:
    """Return images followed by some noise, so that damage to any of their pages is detected."""
    return [jpeg(i) + noise(i, 3000) for i in range(first, first + count)]


def parquet_bytes(columns: dict[str, Any] | None = None, *, rows_per_group: int = ROWS, codec: str = "snappy") -> bytes:
    """Return a Parquet file with page checksums; by default images in `image` and text in `name`."""
    if columns is None:
        count = ROW_GROUPS * ROWS
        columns = {"image": pa.array(image_rows(count), pa.binary()), "name": [f"n{i}" for i in range(count)]}
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns), buffer, row_group_size=rows_per_group, compression=codec, write_page_checksum=True,
        use_dictionary=False, data_page_size=4096, write_batch_size=1, write_statistics=False,
    )  # fmt: skip
    return buffer.getvalue()


def huggingface_images(values: list[dict[str, Any] | None]) -> pa.Array:
    """Return a column as the Hugging Face hub stores images."""
    return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _bad_parquets() -> dict[str, Shard]:
    whole = parquet_bytes()
    page = whole.index(noise(7, 3000)[:500])  # row 2 of row group 1; snappy leaves noise as it is
    numbers = [*range(7), *range(10, 20)]
    plain = pa.array(image_rows(3), pa.binary())
    name = "broken.parquet"
    return {
        "parquet-zero-bytes": Shard(name, b"", missing="unreadable Parquet"),
        "parquet-garbage": Shard(name, noise(1, 5000), missing="unreadable Parquet"),
        "parquet-cut": Shard(name, whole[: len(whole) // 2], missing="unreadable Parquet"),
        "parquet-without-footer": Shard(name, whole[:-8], missing="unreadable Parquet"),
        "parquet-damaged-footer": Shard(name, spoil(whole, len(whole) - 200, b"\xff" * 50), missing="unreadable"),
        "parquet-damaged-page": Shard(
            name, spoil(whole, page, b"\xff" * 40), tuple(map(str, numbers)),
            missing="row group 1: the last 3 of 5 rows cannot be read",
        ),
        "parquet-without-the-column": Shard(name, parquet_bytes({"picture": [1, 2, 3]}), missing="there is no such"),
        "parquet-of-wrong-type": Shard(name, parquet_bytes({"image": ["a", "b"]}), missing="image holds string"),
        "parquet-zero-rows": Shard(name, parquet_bytes({"image": plain.slice(0, 0)})),
        "parquet-nulls": Shard(
            name, parquet_bytes({"image": pa.array([plain[0].as_py(), None], pa.binary())}), ("0",), {"1": "empty"}
        ),
        "parquet-of-paths": Shard(
            name,
            parquet_bytes({"image": huggingface_images(
                [{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, None]
            )}),
            ("0",), {"1": "unsupported", "2": "empty", "3": "empty"},
        ),
    }  # fmt: skip


BAD_PARQUETS: dict[str, Shard] = _bad_parquets()


def gzip_bomb(unpacked_bytes: int) -> bytes:
    """Return a gzip of zeros, which has a thousandth of the unpacked size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(2**20)
    parts = [packer.compress(piece) for _ in range(unpacked_bytes // len(piece))]
    return b"".join([*parts, packer.flush()])
