"""Read an image's header before any decoder does: its format, its size, its orientation."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from models.errors import EmptyImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError

# Pillow makes a Python object of some 300 bytes for each strip or tile before it tells the image's size: 64 MiB of
# strip offsets would take 5 GB. The tallest image of 100 megapixels, with one strip a row, still fits.
MAX_TIFF_STRIPS = 131_072

# Pillow reads each entry of a directory up to four times, 8 us in all. Directories from cameras have some 100.
MAX_TIFF_ENTRIES = 1000

# Values of one tag: Pillow takes 3 us for each value that is a fraction.
MAX_TIFF_FRACTIONS = 1000

# libjpeg goes over the whole image for each scan, and an empty scan takes a few bytes: a file of 1 MB could keep a core
# busy for an hour. Encoders write about 10 scans. The largest image allowed may have 20, smaller ones more.
MAX_JPEG_SCANS = 100
MAX_JPEG_SCANS_OF_THE_LARGEST = 20
# Segments that are searched for scans; those between scans hold tables.
_MAX_JPEG_SEGMENTS = 2000

_WIDTH, _HEIGHT, _STRIPS, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 256, 257, 273, 274, 322, 323, 324

# Kinds of JPEG segments.
_END, _SCAN = 0xD9, 0xDA
_PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Inside a scan, 0xFF is followed by 0x00 or is a restart marker; neither is matched.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
_FRACTIONS = (5, 10)
# Tags with the offsets of the Exif, GPS and "interoperability" directories.
_DIRECTORIES = (34665, 34853, 40965)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is decoded; larger images are refused when their header is read.

    Args:
        max_pixels: Width times height. 100 megapixels take 400 MB of memory, and are more than cameras take.
        max_image_bytes: Size of the encoded image.
    """

    max_pixels: int = 100_000_000
    max_image_bytes: int = 64 * 2**20

    def check_bytes(self, num_bytes: int) -> None:
        """Raise EmptyImageError or ImageTooLargeError if the number of encoded bytes is out of range."""
        if num_bytes == 0:
            raise EmptyImageError("image has no bytes")
        if num_bytes > self.max_image_bytes:
            raise ImageTooLargeError(f"image has {num_bytes:,} bytes; max_image_bytes is {self.max_image_bytes:,}")

    def check_pixels(self, width: int, height: int) -> None:
        """Raise ImageTooLargeError, with width and height, if the image has too many pixels."""
        if width * height > self.max_pixels:
            raise ImageTooLargeError(
                f"image has {width * height:,} pixels ({width} x {height}); max_pixels is {self.max_pixels:,}",
                width=width,
                height=height,
            )


class ImageFormat(StrEnum):
    """A supported image format."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"


# The usual file name extensions.
ENDINGS = {
    ImageFormat.JPEG: "jpg", ImageFormat.PNG: "png", ImageFormat.WEBP: "webp", ImageFormat.GIF: "gif",
    ImageFormat.BMP: "bmp", ImageFormat.TIFF: "tif",
}  # fmt: skip

_SIGNATURES = (
    (b"\xff\xd8\xff", ImageFormat.JPEG),
    (b"\x89PNG\r\n\x1a\n", ImageFormat.PNG),
    (b"GIF87a", ImageFormat.GIF),
    (b"GIF89a", ImageFormat.GIF),
    (b"BM", ImageFormat.BMP),
    (b"II\x2a\x00", ImageFormat.TIFF),
    (b"MM\x00\x2a", ImageFormat.TIFF),
    (b"II\x2b\x00", ImageFormat.TIFF),
    (b"MM\x00\x2b", ImageFormat.TIFF),
)

# Formats that are only recognised, so that the error names them: (offset, bytes there, name).
_OTHER_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftyp", "a video (ISO base media)"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska)"),
)
_OTHER_FORMATS += tuple((0, b"P%d" % kind, "PNM") for kind in range(1, 8))


def sniff_format(data: bytes) -> ImageFormat:
    """Tell the format by the content; the file's name does not matter.

    Raises:
        UnsupportedImageError: The first bytes are those of another known format.
        UndecodableImageError: The format is unknown: a broken file, or not an image.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ImageFormat.WEBP
    for signature, image_format in _SIGNATURES:
        if data.startswith(signature):
            return image_format
    names = ", ".join(ImageFormat)
    for offset, signature, name in _OTHER_FORMATS:
        if data.startswith(signature, offset):
            raise UnsupportedImageError(f"image must be one of {names}, got {name}")
    raise UndecodableImageError(f"image must be one of {names}, got bytes that start with {data[:4].hex()}")


def check_header(image_format: ImageFormat, data: bytes, limits: ImageLimits) -> None:
    """Refuse a file that costs too much memory or time before Pillow even tells its size.

    Pillow allocates the canvas of a WebP, and the first frame of some GIFs, as soon as it opens them.

    Raises:
        ImageTooLargeError: The canvas, or one tile, has too many pixels.
        UndecodableImageError: A TIFF has more strips, tiles, entries or fractions than the limits.
    """
    match image_format:
        case ImageFormat.WEBP:
            limits.check_pixels(*_webp_size(data))
        case ImageFormat.GIF:
            limits.check_pixels(*struct.unpack("<HH", data[6:10].ljust(4, b"\0")))
        case ImageFormat.TIFF:
            _check_tiff(data, limits)


def check_scans(data: bytes, width: int, height: int, limits: ImageLimits) -> None:
    """Refuse a JPEG with very many scans. Takes 10 us for a JPEG with one scan.

    Raises:
        UndecodableImageError: It has more than MAX_JPEG_SCANS; for a very large image the limit is lower.
    """
    several, components = False, 0
    for kind, position in _jpeg_segments(data):
        if kind in _FRAMES:
            several = kind in _PROGRESSIVE_FRAMES
            components = data[position + 7] if len(data) > position + 7 else 0
        elif kind == _SCAN:
            several = several or data[position + 2 : position + 3] < bytes((components,))
            break
    largest = MAX_JPEG_SCANS_OF_THE_LARGEST * limits.max_pixels
    most = max(MAX_JPEG_SCANS_OF_THE_LARGEST, min(MAX_JPEG_SCANS, largest // max(1, width * height)))
    # A video behind the image may hold the same bytes by chance. So segments are counted only if there are many.
    if not several or data.count(bytes((0xFF, _SCAN))) <= most:
        return
    kinds = [kind for kind, _ in itertools.islice(_jpeg_segments(data), _MAX_JPEG_SEGMENTS)]
    if kinds.count(_SCAN) > most or len(kinds) == _MAX_JPEG_SEGMENTS:
        raise UndecodableImageError(
            f"JPEG has {kinds.count(_SCAN):,} scans; at most {most} are read of {width} x {height} pixels",
            width=width,
            height=height,
        )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each segment up to the end of the image: its kind, and the position of its length and content."""
    position = 2
    while (marker := _MARKER.search(data, position)) and (kind := marker.group()[1]) != _END:
        position = marker.end()
        yield kind, position
        position += int.from_bytes(data[position : position + 2], "big")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the canvas, or (0, 0) for a broken header, which the decoder then reports."""
    head = data[:30].ljust(30, b"\0")
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _check_tiff(data: bytes, limits: ImageLimits) -> None:
    """Refuse a TIFF with very many entries or strips, or with tiles beyond `max_pixels` (tiles are decoded whole)."""
    _check_directory(data, None)
    tags = _first_directory(data)
    count = max(tags.get(tag, (0, 0))[0] for tag in (_STRIPS, _TILES))
    if count > MAX_TIFF_STRIPS:
        raise UndecodableImageError(f"TIFF has {count:,} strips or tiles; at most {MAX_TIFF_STRIPS:,} are read")
    width, height, tile_width, tile_height = (
        tags.get(tag, (0, 0))[1] for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    if tile_width * tile_height > limits.max_pixels:
        raise ImageTooLargeError(
            f"TIFF has tiles of {tile_width} x {tile_height} pixels; max_pixels is {limits.max_pixels:,}",
            width=width,
            height=height,
        )


def _check_directory(data: bytes, offset: int | None, depth: int = 0) -> None:
    """Refuse a directory with very many entries or fractions, in itself or in a directory it points to."""
    entries = list(_entries(data, offset))
    if len(entries) > MAX_TIFF_ENTRIES:
        raise UndecodableImageError(f"TIFF has over {MAX_TIFF_ENTRIES:,} entries in a directory; no more are read")
    fractions = max((count for _, kind, count, _ in entries if kind in _FRACTIONS), default=0)
    if fractions > MAX_TIFF_FRACTIONS:
        raise UndecodableImageError(
            f"TIFF has {fractions:,} fractions in a tag; at most {MAX_TIFF_FRACTIONS:,} are read"
        )
    if depth < 2:
        # If a tag comes twice, Pillow takes the first.
        for below in {tag: value for tag, _, _, value in reversed(entries) if tag in _DIRECTORIES}.values():
            _check_directory(data, below, depth + 1)


def exif_orientation(exif: bytes) -> int:
    """Read the orientation (1 to 8) from an EXIF block; 1, which is upright, if it is absent or invalid.

    Pillow's reader takes 100 times as long, and warns about damage that does not matter here.
    """
    _, value = _first_directory(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, (0, 1))
    return value if 1 <= value <= 8 else 1


def _first_directory(tiff: bytes) -> dict[int, tuple[int, int]]:
    """Return {tag: (count, value)} of a TIFF's first directory; the value is 0 unless it is a single integer."""
    tags: dict[int, tuple[int, int]] = {}
    for tag, _, count, value in _entries(tiff, None):
        tags[tag] = max(count, tags.get(tag, (0, 0))[0]), value  # if a tag comes twice, libtiff may take the last
    return tags


def _entries(tiff: bytes, offset: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tag, kind, count, value) for each entry of a directory, at most MAX_TIFF_ENTRIES + 1.

    Stops at the first invalid data. The value is 0 unless it is a single integer.

    Args:
        tiff: The TIFF from its first byte on.
        offset: Offset of the directory; None for the first one.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    if not order:
        return
    try:
        if struct.unpack_from(f"{order}H", tiff, 2)[0] == 43:  # BigTIFF: 8-byte offsets
            offset_at, offset_type, count_type, entry_type = 8, "Q", "Q", "HHQ"
        else:
            offset_at, offset_type, count_type, entry_type = 4, "I", "H", "HHI"
        if offset is None:
            (offset,) = struct.unpack_from(order + offset_type, tiff, offset_at)
        (num_entries,) = struct.unpack_from(order + count_type, tiff, offset)
        entry, value_size = struct.Struct(order + entry_type), struct.calcsize(offset_type)
        first = offset + struct.calcsize(order + count_type)
        stride = entry.size + value_size
        for position in range(first, first + min(num_entries, MAX_TIFF_ENTRIES + 1) * stride, stride):
            tag, kind, count = entry.unpack_from(tiff, position)
            value = 0
            if count == 1 and kind in _INTEGERS:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], tiff, position + entry.size)
            yield tag, kind, count, value
    except (struct.error, OverflowError):  # the latter for 64-bit offsets
        return
