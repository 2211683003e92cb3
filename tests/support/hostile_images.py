"""Images that cause far more work than their size suggests: one function for each, which takes a size in bytes.

`HOSTILE` has all functions by name. `tests.support.image_corpus` has small images that take little time.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable

from tests.support.image_corpus import (
    END,
    HEIGHT,
    WIDTH,
    chunk,
    encode,
    frame_header,
    gif_frame,
    patch,
    picture,
    png_header,
    riff,
    segment,
    tiff,
)

Maker = Callable[[int], bytes]
HOSTILE: dict[str, Maker] = {}


def hostile(maker: Maker) -> Maker:
    """Put a maker into HOSTILE."""
    HOSTILE[maker.__name__] = maker
    return maker


def fill(piece: bytes, size: int) -> bytes:
    """Repeat a piece up to a size."""
    return piece * (size // len(piece))


# --- JPEG


@functools.cache
def plain_jpeg() -> bytes:
    return encode(picture(), "JPEG", quality=90)


def in_jpeg(flood: bytes) -> bytes:
    """Put bytes before the other segments."""
    return plain_jpeg()[:2] + flood + plain_jpeg()[2:]


@hostile
def jpeg_exif_small(size: int) -> bytes:
    return in_jpeg(fill(segment(0xE1, b"Exif\0\0" + b"II*\0"), size))


@hostile
def jpeg_exif_large(size: int) -> bytes:
    return in_jpeg(fill(segment(0xE1, b"Exif\0\0" + bytes(60_000)), size))


@hostile
def jpeg_exif_of_entries(size: int) -> bytes:
    """Whole directories, which Pillow searches for a resolution."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, 0) for tag in range(5000))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entries
    without_jfif = plain_jpeg()[:2] + plain_jpeg()[20:]
    return without_jfif[:2] + fill(segment(0xE1, b"Exif\0\0" + block), size) + without_jfif[2:]


@hostile
def jpeg_comments_empty(size: int) -> bytes:
    return in_jpeg(fill(segment(0xFE, b""), size))


@hostile
def jpeg_comments_empty_behind_a_scan(size: int) -> bytes:
    data = encode(picture(), "JPEG", progressive=True)
    at = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    return data[:at] + fill(segment(0xFE, b""), size) + data[at:]


@hostile
def jpeg_icc_empty(size: int) -> bytes:
    return in_jpeg(fill(segment(0xE2, b"ICC_PROFILE\0\1\1"), size))


@hostile
def jpeg_photoshop_resources(size: int) -> bytes:
    resources = b"".join(b"8BIM" + struct.pack(">H", code) + bytes(6) for code in range(5000))
    return in_jpeg(fill(segment(0xED, b"Photoshop 3.0\0" + resources), size))


@hostile
def jpeg_fill_bytes(size: int) -> bytes:
    return in_jpeg(b"\xff" * size)


@hostile
def jpeg_junk_between_segments(size: int) -> bytes:
    return in_jpeg(bytes(size))


@hostile
def jpeg_restarts_before_the_image(size: int) -> bytes:
    return in_jpeg(fill(b"\xff\xd0", size))


@hostile
def jpeg_images_begun(size: int) -> bytes:
    return in_jpeg(fill(b"\xff\xd8", size))


@hostile
def jpeg_images_ended(size: int) -> bytes:
    return in_jpeg(fill(b"\xff\xd9", size))


@hostile
def jpeg_quantisation_tables(size: int) -> bytes:
    return in_jpeg(fill(segment(0xDB, (b"\0" + b"\1" * 64) * 1000), size))


@hostile
def jpeg_frames(size: int) -> bytes:
    at = frame_header(plain_jpeg())
    return in_jpeg(fill(plain_jpeg()[at : at + 19], size))


@hostile
def jpeg_scans_of_a_large_image(size: int) -> bytes:
    """100 megapixels in 99 scans, of which all but the first are empty."""
    return progressive(10_000, 10_000, 99)


def progressive(width: int, height: int, scans: int) -> bytes:
    """Return a grey progressive JPEG: one scan of flat pixels, then empty scans, each over the whole image."""
    blocks = -(-width // 8) * -(-height // 8)
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    quantisation = segment(0xDB, b"\0" + b"\1" * 64)
    # One code of one bit each: 0 means "no difference", 0xE0 means "up to 32767 following blocks are empty".
    dc = segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0")
    ac = segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    runs = -(-blocks // 16_384)
    bits = ("0" + "0" * 14) * runs
    empty = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    later = b"".join(segment(0xDA, b"\1\1\0\1\x3f" + bytes((high,))) + empty for high in [0x0D] + [0xDC] * (scans - 2))
    return b"\xff\xd8" + quantisation + frame + dc + ac + first + later + b"\xff\xd9"


# --- PNG


@functools.cache
def plain_png() -> bytes:
    return encode(picture(), "PNG")


def in_png(flood: bytes) -> bytes:
    """Put chunks behind the header."""
    return plain_png()[:33] + flood + plain_png()[33:]


def behind_png(flood: bytes) -> bytes:
    """Put chunks behind the pixels."""
    return plain_png()[: -len(END)] + flood + END


def numbered(kind: bytes, payload: bytes, size: int, keyword: str = "k%06d") -> bytes:
    """Return chunks that each have another keyword."""
    one = len(payload) + 12 + len(keyword % 0)
    return b"".join(chunk(kind, (keyword % number).encode() + payload) for number in range(size // one))


BOMB = zlib.compress(bytes(2**20 - 1), 9)


@hostile
def png_chunks_unknown(size: int) -> bytes:
    return in_png(fill(chunk(b"abCd", b""), size))


@hostile
def png_chunks_private(size: int) -> bytes:
    return in_png(fill(chunk(b"abcd", b""), size))


@hostile
def png_texts(size: int) -> bytes:
    return in_png(numbered(b"tEXt", b"\0x", size))


@hostile
def png_texts_behind_the_pixels(size: int) -> bytes:
    return behind_png(numbered(b"tEXt", b"\0x", size))


@hostile
def png_text_bombs(size: int) -> bytes:
    return in_png(numbered(b"zTXt", b"\0\0" + BOMB, min(size, 64 * len(BOMB))))


@hostile
def png_international_text_bombs(size: int) -> bytes:
    return behind_png(numbered(b"iTXt", b"\0\1\0\0\0" + BOMB, min(size, 64 * len(BOMB))))


@hostile
def png_profile_bombs(size: int) -> bytes:
    return in_png(fill(chunk(b"iCCP", b"x\0\0" + BOMB), size))


@hostile
def png_data_empty(size: int) -> bytes:
    return plain_png()[:33] + fill(chunk(b"IDAT", b""), size) + plain_png()[33:]


@hostile
def png_data_of_one_byte(size: int) -> bytes:
    pixels = zlib.compress(b"".join(b"\0" + bytes(3 * WIDTH) for _ in range(HEIGHT)), 0)
    pieces = b"".join(chunk(b"IDAT", pixels[at : at + 1]) for at in range(len(pixels)))
    return png_header(WIDTH, HEIGHT, 8, 2) + pieces[:size] + END


@hostile
def png_palettes(size: int) -> bytes:
    return in_png(fill(chunk(b"PLTE", bytes(3)), size))


@hostile
def png_exifs(size: int) -> bytes:
    return in_png(fill(chunk(b"eXIf", b"II*\0"), size))


@hostile
def png_frames(size: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 25, 0, 0)
    frames = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * at + 1) + control[4:]) + chunk(b"fdAT", struct.pack(">I", 2 * at + 2))
        for at in range(size // 54)
    )
    head = chunk(b"acTL", struct.pack(">II", size // 54 + 1, 0)) + chunk(b"fcTL", control)
    return plain_png()[:33] + head + plain_png()[33 : -len(END)] + frames + END


# --- GIF


def in_gif(flood: bytes) -> bytes:
    """Put extensions before the first frame."""
    data = encode(picture().quantize(64), "GIF")
    return data[: gif_frame(data)] + flood + data[gif_frame(data) :]


@hostile
def gif_comment(size: int) -> bytes:
    return in_gif(b"!\xfe" + fill(b"\xff" + b"c" * 255, size) + b"\0")


@hostile
def gif_comment_of_single_bytes(size: int) -> bytes:
    return in_gif(b"!\xfe" + fill(b"\1c", size) + b"\0")


@hostile
def gif_comments(size: int) -> bytes:
    return in_gif(fill(b"!\xfe\1c\0", size))


@hostile
def gif_extensions_empty(size: int) -> bytes:
    return in_gif(fill(b"!\x01\0", size))


@hostile
def gif_controls(size: int) -> bytes:
    return in_gif(fill(b"!\xf9\4\0\0\0\0\0", size))


@hostile
def gif_junk(size: int) -> bytes:
    return in_gif(bytes(size))


@hostile
def gif_frames(size: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return in_gif(b"")[:-1] + fill(frame, size) + b";"


# --- WebP, BMP


@hostile
def webp_chunks(size: int) -> bytes:
    lossy = encode(picture(), "WEBP")
    flood = fill(b"abcd\0\0\0\0", size)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", WIDTH - 1)[:3]
    body = canvas + struct.pack("<I", HEIGHT - 1)[:3] + lossy[12:] + flood
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@hostile
def webp_frames(size: int) -> bytes:
    pixel = encode(picture(1, 1), "WEBP", lossless=True)[12:]
    frame = bytes(12) + b"\1\0\0\0" + pixel
    moving = struct.pack("<4sI", b"ANMF", len(frame)) + frame
    canvas = (b"VP8X", b"\2\0\0\0" + struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3])
    head = riff(canvas, (b"ANIM", bytes(6)))
    body = head[12:] + fill(moving, size)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@hostile
def bmp_runs_that_skip(size: int) -> bytes:
    """Run-length data of "go 0 right, 0 up"."""
    from tests.support.image_corpus import bmp

    return bmp(WIDTH, HEIGHT, 8, fill(b"\0\2\0\0", size) + b"\0\1", compression=1, palette=bytes(1024))


# --- TIFF


def directory(*more: tuple[int, int, list[int]]) -> list[tuple[int, int, list[int]]]:
    """Return the tags of an image of one grey pixel, and the given ones."""
    return [(256, 4, [1]), (257, 4, [1]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (273, 4, [0]), (277, 3, [1]),
            (278, 4, [1]), (279, 4, [1]), *more]  # fmt: skip


@hostile
def tiff_entries(size: int) -> bytes:
    return tiff(directory(*((40_000 + at, 4, [0]) for at in range(min(size // 12, 25_000)))), b"\0")


@hostile
def tiff_entries_of_eight_bytes(size: int) -> bytes:
    """A BigTIFF, whose number of entries has 64 bits; the added entries all have the same tag."""
    tags = [(tag, kind, values[0]) for tag, kind, values in directory()]
    entries = [struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in tags]
    flood = [struct.pack("<HHQQ", 60_000, 9, 1, 0)] * (size // 20)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries) + len(flood)) + b"".join(entries + flood) + bytes(9)


def _stated_kind(data: bytes, tag: int, kind: int, count: int) -> bytes:
    """Overwrite the kind and the number of a tag's values."""
    at = next(at for at in range(10, len(data), 12) if struct.unpack_from("<H", data, at) == (tag,))
    return patch(data, at + 2, struct.pack("<HI", kind, count))


@hostile
def tiff_resolutions(size: int) -> bytes:
    """A resolution with very many fractions."""
    return _stated_kind(tiff(directory((282, 4, [1] * (size // 4))), b"\0"), 282, 5, size // 8)


@hostile
def tiff_bits_per_sample(size: int) -> bytes:
    tags = [each for each in directory() if each[0] != 258]
    return tiff([*tags, (258, 3, [8] * (size // 2))], b"\0")


@hostile
def tiff_exif_of_entries(size: int) -> bytes:
    """A directory below the first, to which three tags point."""
    count = min(size // 12, 65_535)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, 0) for tag in range(count))
    below = struct.pack("<H", count) + entries + bytes(4)
    head = tiff(directory((34_665, 4, [0]), (34_853, 4, [0]), (40_965, 4, [0])), b"\0")
    for tag in (34_665, 34_853, 40_965):
        at = next(at for at in range(10, len(head), 12) if struct.unpack_from("<H", head, at) == (tag,))
        head = patch(head, at + 8, struct.pack("<I", len(head)))
    return head + below
