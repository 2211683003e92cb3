"""Strip an image file of all that its pixels do not need, so that no library parses it.

Pillow keeps every comment, text and profile of a file, some at a cost that grows with the square of their number: 2 MB
of small Exif segments took 4 s, and each 2 kB of compressed profile 1 ms. Only the orientation is needed here. So the
segments before the pixels are walked here, up to limits that files from cameras and editors do not come near.
"""

from __future__ import annotations

import re
import struct

from models.decode.headers import ImageFormat, exif_orientation
from models.errors import UndecodableImageError

# A profile of 255 segments still fits, and so does XMP of megabytes (a depth map, a video) in as many.
MAX_JPEG_SEGMENTS = 1000

# Quantisation tables, Huffman tables and frame. One of each possible kind takes 3 kB; Pillow takes 80 ms for 1 MB.
MAX_JPEG_TABLE_BYTES = 2**16

# libpng writes pixels in chunks of 8 kB: a file of 64 MiB has half as many.
MAX_PNG_CHUNKS = 2**14

# Blocks have at most 255 bytes: 8 MB in all. XMP is text that parses as blocks of some 70 bytes each.
MAX_GIF_BLOCKS = 2**15

_SCAN, _EXIF, _ADOBE, _JFIF = 0xDA, 0xE1, 0xEE, 0xE0
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_FRAMES_AND_TABLES = {*range(0xC0, 0xD0), 0xDB, 0xDD} - {0xC8}
_METADATA = {*range(0xE0, 0xF0), 0xFE, 0xDC}  # 0xDC is the number of lines, which libjpeg skips too
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER_BYTES = {_JFIF: 14, _ADOBE: 12}  # the colour space; a thumbnail may follow


def bare_image(image_format: ImageFormat, data: bytes) -> bytes:
    """Drop what the first picture does not need. WebP and TIFF are returned unchanged: see `check_header`.

    Takes 10 us, plus a copy of the file if anything is dropped. Damage is kept, for the decoder to report.

    Raises:
        UndecodableImageError: The file has more segments, chunks or blocks than the limits.
    """
    match image_format:
        case ImageFormat.JPEG:
            return _bare_jpeg(data)
        case ImageFormat.PNG:
            return _bare_png(data)
        case ImageFormat.GIF:
            return _bare_gif(data)
        case ImageFormat.BMP:
            return _bare_bmp(data)
    return data


def _bare_jpeg(data: bytes) -> bytes:
    """Keep the tables, the frame, the colour space, the orientation, and everything from the first scan on."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:2]]
    num_bytes, position, oriented = 0, 2, False
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None:
            return b"".join(kept)
        kind, start = marker.group()[1], marker.end()
        if kind == _SCAN:
            nothing_dropped = sum(map(len, kept)) == marker.start()
            return data if nothing_dropped else b"".join([*kept, view[marker.start() :]])
        size = int.from_bytes(view[start : start + 2], "big")
        position = start + size
        if position > len(data):
            return b"".join([*kept, view[marker.start() :]])
        if kind in _FRAMES_AND_TABLES:
            kept.append(view[start - 2 : position])
            num_bytes += size
        elif kind == _EXIF and not oriented and data.startswith(b"Exif\0\0", start + 2):
            oriented = True
            kept.append(_exif_segment(exif_orientation(data[start + 2 : position])))
        elif kind in _HEADER_BYTES:
            kept.append(_shortened(view[start - 2 : position], _HEADER_BYTES[kind]))
        elif kind not in _METADATA:  # the end of the image, or a kind that no decoder knows
            return b"".join(kept)
        if num_bytes > MAX_JPEG_TABLE_BYTES:
            raise UndecodableImageError(f"JPEG has over {MAX_JPEG_TABLE_BYTES:,} bytes of tables; no more are read")
    raise UndecodableImageError(f"JPEG has over {MAX_JPEG_SEGMENTS:,} segments before its image; no more are read")


def _shortened(segment: memoryview, num_bytes: int) -> bytes:
    """Truncate a JPEG segment's content."""
    content = bytes(segment[4 : 4 + num_bytes])
    return bytes(segment[:2]) + (len(content) + 2).to_bytes(2, "big") + content


def _exif_segment(orientation: int) -> bytes:
    """Return a JPEG's Exif segment that holds only an orientation."""
    entry = b"\x01\x12\0\3\0\0\0\1\0%c\0\0" % orientation
    return b"\xff\xe1\0\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\1" + entry + bytes(4)


def _bare_png(data: bytes) -> bytes:
    """Keep the header, the palette and the orientation, and put the pixels into one chunk."""
    view = memoryview(data)
    kept: dict[bytes, memoryview] = {}
    pixels: list[memoryview] = []
    position, whole = 8, False
    for _ in range(MAX_PNG_CHUNKS):
        kind = data[position + 4 : position + 8]
        if kind == b"IEND" or len(kind) < 4:
            break
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if kind == b"IDAT":
            pixels += [] if whole else [view[position + 8 : end - 4]]
        elif kind in (b"IHDR", b"PLTE", b"eXIf"):
            kept[kind] = view[position:end]  # if there are several, Pillow takes the last
        whole = bool(pixels) and kind != b"IDAT"
        position = end
    else:
        raise UndecodableImageError(f"PNG has over {MAX_PNG_CHUNKS:,} chunks; no more are read")
    # The checksum is left 0: Pillow does not check it for pixels.
    data_chunk: list[bytes | memoryview] = []
    if pixels:
        data_chunk = [sum(map(len, pixels)).to_bytes(4, "big") + b"IDAT", *pixels, bytes(4)]
    end_chunk = [_PNG_END] if pixels or kind == b"IEND" else []
    return b"".join([view[:8], *kept.values(), *data_chunk, *end_chunk])


def _bare_gif(data: bytes) -> bytes:
    """Keep the header, the palette, the first frame's last control block, and everything from that frame on."""
    palette = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    head = position = 13 + palette
    control, blocks = b"", 0
    while position < len(data) and data[position] not in b",;":
        start, position = position, position + 1
        if data[start] == 0x21:
            position += 1
            while position < len(data) and data[position] and blocks <= MAX_GIF_BLOCKS:
                position += data[position] + 1
                blocks += 1
            position += 1
            if data[start + 1 : start + 3] == b"\xf9\4":
                control = data[start:position]
        blocks += 1
        if blocks > MAX_GIF_BLOCKS:
            raise UndecodableImageError(f"GIF has over {MAX_GIF_BLOCKS:,} blocks before its image; no more are read")
    return b"".join([data[:head], control[:8], memoryview(data)[position:]])


def _bare_bmp(data: bytes) -> bytes:
    """Truncate run-length data, which Pillow parses in Python, if it has more runs than the image has pixels."""
    if len(data) < 54 or data[30] not in (1, 2):
        return data
    start, width, height = struct.unpack_from("<I4xii", data, 10)
    return data[: start + 4 * abs(height) * (abs(width) + 1)]
