"""Bad and odd images made by code, each with the status that it must get.

For an image that must be `ok`, width and height are those stored in the file. For others they are those that the error
must have: the stored ones if the header can be read, else None.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.decode.decode import ImageLimits

# With the default of 64 MiB a single image would make the corpus large.
LIMITS = ImageLimits(max_image_bytes=400_000)
WIDTH, HEIGHT = 96, 64

OK, EMPTY, TOO_LARGE, UNSUPPORTED, UNDECODABLE = "ok", "empty", "too_large", "unsupported", "undecodable"


@dataclass(frozen=True)
class Case:
    """An image, and the expected result.

    Attributes:
        name: Name of the case; valid as a key.
        extension: The file's extension, right or wrong.
        data: The file's bytes.
        status: `ok`, or that of the error.
        width: Stored width, or None if it cannot be read.
        height: Stored height, or None if it cannot be read.
    """

    name: str
    extension: str
    data: bytes
    status: str
    width: int | None = None
    height: int | None = None


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return a smooth picture that differs from every rotated or mirrored version of itself."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / max(width, 2), y / max(height, 2)
    red = 40 + 190 * x
    green = 230 - 190 * y * y
    blue = 128 + 90 * np.sin(5 * x + 2 * y) * np.cos(3 * y - x)
    return Image.fromarray(np.stack([red, green, blue], axis=2).round().astype(np.uint8))


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    """Return the image encoded as a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(count: int, seed: int = 0) -> bytes:
    """Return random bytes."""
    return np.random.default_rng(seed).bytes(count)


def patch(data: bytes, offset: int, new: bytes) -> bytes:
    """Overwrite some bytes."""
    return data[:offset] + new + data[offset + len(new) :]


def flip(data: bytes, offset: int, count: int = 1) -> bytes:
    """Invert all bits of some bytes."""
    return patch(data, offset, bytes(255 - byte for byte in data[offset : offset + count]))


def exif(orientation: int) -> bytes:
    """Return an EXIF block with an orientation, without the leading `Exif`."""
    return tiff([(274, 3, [orientation])])


# --- JPEG


def segment(marker: int, payload: bytes) -> bytes:
    """Return a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """Put an EXIF segment before the others."""
    return jpeg[:2] + segment(0xE1, b"Exif\0\0" + block) + jpeg[2:]


def frame_header(jpeg: bytes) -> int:
    """Return the position of the frame header's marker."""
    return next(at for at in (jpeg.find(b"\xff" + kind) for kind in (b"\xc0", b"\xc2")) if at >= 0)


def sized(jpeg: bytes, width: int, height: int) -> bytes:
    """Overwrite the size in the frame header."""
    return patch(jpeg, frame_header(jpeg) + 5, struct.pack(">HH", height, width))


def scans(jpeg: bytes) -> list[int]:
    """Return the positions at which scans begin."""
    return [at for at in range(len(jpeg) - 1) if jpeg[at : at + 2] == b"\xff\xda"]


def _jpegs() -> Iterator[Case]:
    jpeg = functools.partial(Case, extension="jpg", status=OK, width=WIDTH, height=HEIGHT)
    plain = encode(picture(), "JPEG", quality=90)
    progressive = encode(picture(), "JPEG", quality=90, progressive=True)
    (scan,), passes = scans(plain), scans(progressive)

    yield jpeg("jpeg", data=plain)
    yield jpeg("jpeg-named-png", extension="png", data=plain)
    yield jpeg("jpeg-progressive", data=progressive)
    yield jpeg("jpeg-grey", data=encode(picture().convert("L"), "JPEG"))
    yield jpeg("jpeg-444", data=encode(picture(), "JPEG", subsampling=0))
    yield jpeg("jpeg-422", data=encode(picture(), "JPEG", subsampling=1))
    yield jpeg("jpeg-rgb", data=encode(picture(), "JPEG", keep_rgb=True))
    yield jpeg("jpeg-restarts", data=encode(picture(), "JPEG", restart_marker_blocks=2))
    cmyk = encode(picture().convert("CMYK"), "JPEG")
    yield jpeg("jpeg-cmyk", data=cmyk)
    adobe = cmyk.index(b"Adobe")
    yield jpeg("jpeg-ycck", data=patch(cmyk, adobe + 11, b"\2"))
    yield jpeg("jpeg-padding-between-segments", data=plain[:2] + b"\xff" * 5 + plain[2:])
    yield jpeg("jpeg-comment-of-markers", data=plain[:2] + segment(0xFE, b"\xff\xd9\xff\xda" * 50) + plain[2:])
    for orientation in range(1, 9):
        yield jpeg(f"jpeg-orientation-{orientation}", data=with_exif(plain, exif(orientation)))
    yield jpeg("jpeg-orientation-0", data=with_exif(plain, exif(0)))
    yield jpeg("jpeg-orientation-9", data=with_exif(plain, exif(9)))
    yield jpeg("jpeg-exif-empty", data=with_exif(plain, b""))
    yield jpeg("jpeg-exif-cut", data=with_exif(plain, exif(6)[:13]))
    yield jpeg("jpeg-exif-garbage", data=with_exif(plain, noise(300)))
    yield jpeg("jpeg-exif-far-away", data=with_exif(plain, b"II*\0\xff\xff\xff\xff"))
    yield jpeg("jpeg-exif-circle", data=with_exif(plain, patch(exif(1), 22, struct.pack("<I", 8))))
    yield jpeg("jpeg-exif-many-entries", data=with_exif(plain, patch(exif(1), 8, b"\xff\xff")))
    yield jpeg("jpeg-icc-garbage", data=plain[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + noise(99)) + plain[2:])
    yield jpeg("jpeg-icc-parts-missing", data=plain[:2] + segment(0xE2, b"ICC_PROFILE\0\7\x09x") + plain[2:])
    yield jpeg("jpeg-photoshop-garbage", data=plain[:2] + segment(0xED, b"Photoshop 3.0\x008BIM\4") + plain[2:])
    yield jpeg("jpeg-mpf-garbage", data=plain[:2] + segment(0xE2, b"MPF\0" + noise(60)) + plain[2:])
    yield jpeg("jpeg-two-behind-each-other", data=plain + encode(picture(32, 32), "JPEG"))
    yield jpeg("jpeg-mpo", data=encode(picture(), "MPO", save_all=True, append_images=[picture(40, 30)]))
    yield jpeg("jpeg-trailing-garbage", data=plain + noise(5000))
    yield jpeg("jpeg-trailing-scans", data=plain + b"\xff\xda" * 500)
    yield jpeg("jpeg-1x1", data=encode(picture(1, 1), "JPEG"), width=1, height=1)
    yield jpeg("jpeg-1x5000", data=encode(picture(1, 5000), "JPEG"), width=1, height=5000)
    yield jpeg("jpeg-20000x1", data=encode(picture(20_000, 1), "JPEG"), width=20_000, height=1)
    # The pixels change, but a decoder cannot notice it.
    yield jpeg("jpeg-other-quantisation", data=flip(plain, plain.index(b"\xff\xdb") + 9, 3))

    bad = functools.partial(Case, extension="jpg", status=UNDECODABLE)
    known = functools.partial(bad, width=WIDTH, height=HEIGHT)
    yield bad("jpeg-signature-only", data=plain[:3])
    yield bad("jpeg-cut-in-app0", data=plain[:12])
    yield bad("jpeg-cut-in-tables", data=plain[: plain.index(b"\xff\xdb") + 20])
    yield bad("jpeg-cut-in-frame-header", data=plain[: frame_header(plain) + 6])
    yield known("jpeg-cut-in-first-scan", data=plain[: scan + 60])
    yield known("jpeg-cut-in-half", data=plain[: (scan + len(plain)) // 2])
    yield known("jpeg-cut-near-the-end", data=plain[:-20])
    yield known("jpeg-end-marker-missing", data=plain[:-2])
    yield known("jpeg-cut-in-end-marker", data=plain[:-1])
    yield known("jpeg-cut-but-ended", data=plain[: (scan + len(plain)) // 2] + b"\xff\xd9")
    yield known("jpeg-cut-and-filled-with-zeros", data=plain[: scan + 60] + bytes(20_000))
    yield known("jpeg-progressive-cut-in-first-scan", data=progressive[: passes[0] + 30])
    yield known("jpeg-progressive-cut-between-scans", data=progressive[: passes[3]])
    yield known("jpeg-progressive-cut-in-last-scan", data=progressive[: passes[-1] + 30])
    yield known("jpeg-progressive-without-end-marker", data=progressive[:-2])
    counts = plain.index(b"\xff\xc4") + 5
    yield known("jpeg-huffman-of-too-many-codes", data=patch(plain, counts, b"\xff" * 16))
    yield known("jpeg-huffman-of-bad-lengths", data=patch(plain, counts, b"\3\0"))
    yield known("jpeg-without-quantisation", data=_without(plain, 0xDB))
    yield known("jpeg-scan-of-unknown-component", data=patch(plain, scan + 5, b"\x77"))
    yield known("jpeg-header-only", data=plain[:scan] + b"\xff\xd9")
    yield bad("jpeg-without-frame-header", data=_without(plain, 0xC0))
    yield bad("jpeg-12-bit", data=patch(plain, frame_header(plain) + 4, b"\x0c"))
    yield bad("jpeg-7-components", data=patch(plain, frame_header(plain) + 9, b"\7"))
    yield Case("jpeg-0x0", "jpg", sized(plain, 0, 0), UNDECODABLE)
    yield Case("jpeg-height-0", "jpg", sized(plain, WIDTH, 0), UNDECODABLE)
    yield Case("jpeg-stated-larger", "jpg", sized(plain, 2000, 1500), UNDECODABLE, 2000, 1500)
    yield Case("jpeg-stated-65535x65535", "jpg", sized(plain, 65_535, 65_535), TOO_LARGE, 65_535, 65_535)
    last = progressive[passes[-1] : -2]
    yield known("jpeg-bomb-of-scans", data=progressive[:-2] + last * 300 + b"\xff\xd9")
    # With one component a scan, each scan covers the whole image too.
    empty_scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    yield known("jpeg-bomb-of-sequential-scans", data=plain[:scan] + empty_scan * 300 + b"\xff\xd9")
    yield bad("jpeg-garbage-in-front", data=b"\r\n" + plain)
    yield bad("jpeg-then-garbage", data=plain[:4] + noise(3000))
    yield Case("jpeg-too-many-bytes", "jpg", plain + bytes(LIMITS.max_image_bytes), TOO_LARGE)
    yield jpeg("jpeg-just-few-enough-bytes", data=plain.ljust(LIMITS.max_image_bytes, b"\0"))


def _without(jpeg: bytes, kind: int) -> bytes:
    """Remove the segments of a kind."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", jpeg, at + 2)
        kept += b"" if jpeg[at + 1] == kind else jpeg[at : at + 2 + size]
        at += 2 + size
    return kept + jpeg[at:]


# --- PNG

PNG = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"


def chunk(kind: bytes, payload: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_header(width: int, height: int, bits: int, colour: int, *, interlace: int = 0) -> bytes:
    """Return the signature and the IHDR."""
    return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))


def png(rows: np.ndarray, bits: int, colour: int, *, extra: bytes = b"") -> bytes:
    """Return a PNG of rows of big-endian samples, uint8 or uint16 of shape (height, width, channels)."""
    lines = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows)
    header = png_header(rows.shape[1], rows.shape[0], bits, colour)
    return header + extra + chunk(b"IDAT", zlib.compress(lines)) + END


def _interlaced() -> bytes:
    pixels = np.asarray(picture())
    lines = b"".join(
        b"\0" + row.tobytes()
        for x, y, right, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                                  (0, 1, 1, 2))
        for row in pixels[y::down, x::right]
    )  # fmt: skip
    return png_header(WIDTH, HEIGHT, 8, 2, interlace=1) + chunk(b"IDAT", zlib.compress(lines)) + END


@functools.cache
def zeros_packed(count: int) -> bytes:
    """Return zeros compressed by zlib, without holding all of them in memory."""
    packer, parts = zlib.compressobj(9), []
    for start in range(0, count, 2**20):
        parts.append(packer.compress(bytes(min(2**20, count - start))))
    return b"".join([*parts, packer.flush()])


def _pngs() -> Iterator[Case]:
    ok = functools.partial(Case, extension="png", status=OK, width=WIDTH, height=HEIGHT)
    image, grey = picture(), picture().convert("L")
    plain = encode(image, "PNG")
    wide = np.asarray(image).astype(np.uint16) * 257
    clear = Image.fromarray((np.asarray(grey) // 2 + 20).astype(np.uint8))
    body = plain.index(b"IDAT") - 4

    yield ok("png", data=plain)
    yield ok("png-named-jpg", extension="jpg", data=plain)
    yield ok("png-grey", data=encode(grey, "PNG"))
    yield ok("png-1-bit", data=encode(grey.convert("1"), "PNG"))
    yield ok("png-16-bit-grey", data=png(wide[:, :, :1], 16, 0))
    yield ok("png-16-bit-rgb", data=png(wide, 16, 2))
    yield ok("png-16-bit-rgba", data=png(wide[:, :, [0, 1, 2, 0]], 16, 6))
    yield ok("png-16-bit-grey-alpha", data=png(wide[:, :, :2], 16, 4))
    yield ok("png-palette", data=encode(image.quantize(16), "PNG"))
    yield ok("png-palette-transparent", data=encode(image.quantize(16), "PNG", transparency=3))
    yield ok("png-palette-of-alphas", data=encode(image.quantize(16), "PNG", transparency=bytes(range(16))))
    yield ok("png-palette-too-short", data=_short_palette())
    yield ok("png-grey-alpha", data=encode(Image.merge("LA", (grey, clear)), "PNG"))
    yield ok("png-rgba", data=encode(Image.merge("RGBA", (*image.split(), clear)), "PNG"))
    yield ok("png-rgb-transparent-colour", data=encode(image, "PNG", transparency=(40, 230, 128)))
    yield ok("png-interlaced", data=_interlaced())
    yield ok("png-animated", data=encode(image, "PNG", save_all=True, append_images=[image.rotate(90)]))
    yield ok("png-orientation-6", data=encode(image, "PNG", exif=exif(6)))
    yield ok("png-orientation-behind-pixels", data=plain[: -len(END)] + chunk(b"eXIf", exif(8)) + END)
    yield ok("png-exif-garbage", data=encode(image, "PNG", exif=noise(99)))
    yield ok("png-icc-garbage", data=plain[:33] + chunk(b"iCCP", b"x\0\0" + noise(60)) + plain[33:])
    yield ok("png-unknown-chunk", data=plain[:33] + chunk(b"abCd", noise(60)) + plain[33:])
    # The pixels are complete, so the chunk's stated length does not matter.
    yield ok("png-data-of-stated-2-gib", data=patch(plain, body, b"\x7f\xff\xff\xff"))
    yield ok("png-data-crc-wrong", data=flip(plain, len(plain) - len(END) - 4, 4))
    yield ok("png-many-data-chunks", data=_split_data(plain, 50))
    yield ok("png-trailing-garbage", data=plain + noise(5000))
    yield ok("png-1x1", data=encode(picture(1, 1), "PNG"), width=1, height=1)
    yield ok("png-1x5000", data=encode(picture(1, 5000), "PNG"), width=1, height=5000)
    side = 9500  # above Pillow's own limit of 89 megapixels, below ours
    flat = chunk(b"IDAT", zeros_packed(side * (1 + -(-side // 8)))) + END
    yield ok("png-90-megapixels", data=png_header(side, side, 1, 0) + flat, width=side, height=side)

    bad = functools.partial(Case, extension="png", status=UNDECODABLE)
    known = functools.partial(bad, width=WIDTH, height=HEIGHT)
    yield bad("png-signature-only", data=PNG)
    yield bad("png-cut-in-header", data=plain[:25])
    yield bad("png-header-only", data=plain[:33])
    yield known("png-cut-in-data", data=plain[: (body + len(plain)) // 2])
    yield known("png-cut-at-data", data=plain[: body + 8])
    yield known("png-data-too-short", data=plain[:33] + chunk(b"IDAT", zlib.compress(bytes(1000))) + END)
    yield known("png-data-missing", data=plain[:33] + END)
    yield known("png-data-empty", data=plain[:33] + chunk(b"IDAT", b"") + END)
    yield known("png-data-garbage", data=plain[:33] + chunk(b"IDAT", noise(500)) + END)
    yield bad("png-header-crc-wrong", data=flip(plain, 29, 4))
    yield bad("png-bits-3", data=png_header(WIDTH, HEIGHT, 3, 2) + plain[33:])
    yield bad("png-0x0", data=png_header(0, 0, 8, 2) + plain[33:])
    text = plain[:33] + chunk(b"zTXt", b"Comment\0\0" + zeros_packed(100_000_000)) + plain[33:]
    yield ok("png-bomb-of-text", data=text)  # never decompressed
    profile = plain[:33] + chunk(b"iCCP", b"icc\0\0" + zeros_packed(100_000_000)) + plain[33:]
    yield ok("png-bomb-of-profile", data=profile)
    side = 30_000
    squares = chunk(b"IDAT", zeros_packed(side * (1 + side // 8))) + END
    yield Case("png-bomb-30000x30000", "png", png_header(side, side, 1, 0) + squares, TOO_LARGE, side, side)
    huge = 2**31 - 1
    yield Case("png-stated-2g-x-2g", "png", png_header(huge, huge, 8, 2) + plain[33:], TOO_LARGE, huge, huge)


def _short_palette() -> bytes:
    """Return a PNG whose pixels refer to colours that its palette lacks."""
    pixels = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH, 1)
    return png(pixels, 8, 3, extra=chunk(b"PLTE", bytes(range(30))))


def _split_data(data: bytes, size: int) -> bytes:
    """Split the pixel data into chunks of `size` bytes."""
    at = data.index(b"IDAT") - 4
    (total,) = struct.unpack_from(">I", data, at)
    content = data[at + 8 : at + 8 + total]
    return data[:at] + b"".join(chunk(b"IDAT", content[i : i + size]) for i in range(0, total, size)) + END


# --- WebP


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", struct.pack("<I", flags) + size


def _webps() -> Iterator[Case]:
    ok = functools.partial(Case, extension="webp", status=OK, width=WIDTH, height=HEIGHT)
    image = picture()
    lossy, lossless = encode(image, "WebP", quality=80), encode(image, "WebP", lossless=True)
    alpha = Image.merge("RGBA", (*image.split(), image.getchannel("R")))
    moving = encode(image, "WebP", save_all=True, append_images=[image.rotate(180)], duration=40)
    yield ok("webp", data=lossy)
    yield ok("webp-lossless", data=lossless)
    yield ok("webp-alpha", data=encode(alpha, "WebP", quality=80))
    yield ok("webp-animated", data=moving)
    yield ok("webp-orientation-5", data=encode(image, "WebP", exif=b"Exif\0\0" + exif(5)))
    yield ok("webp-trailing-garbage", data=lossy + noise(500))
    yield ok("webp-1x1", data=encode(picture(1, 1), "WebP"), width=1, height=1)

    bad = functools.partial(Case, extension="webp", status=UNDECODABLE)
    yield bad("webp-signature-only", data=lossy[:12])
    yield bad("webp-cut-in-header", data=lossy[:22])
    yield bad("webp-cut-in-half", data=lossy[: len(lossy) // 2])
    yield bad("webp-cut-near-the-end", data=lossy[:-10])
    yield bad("webp-lossless-cut", data=lossless[:-10])
    yield bad("webp-animated-cut-in-first-frame", data=moving[: len(moving) // 4])
    yield bad("webp-size-cut-with-it", data=riff((b"VP8 ", lossy[20 : len(lossy) // 2])), width=WIDTH, height=HEIGHT)
    yield bad("webp-garbage", data=riff((b"VP8 ", noise(300))))
    yield bad("webp-no-chunks", data=riff())
    yield bad("webp-other-riff", data=b"RIFF\x24\0\0\0WAVEfmt " + bytes(40))
    big = 16_384
    bomb = riff(_canvas(big, big, 2), (b"ANIM", bytes(6)))
    yield Case("webp-bomb-of-canvas", "webp", bomb, TOO_LARGE, big, big)
    widest = riff(_canvas(2**24, 2**24), (b"VP8 ", lossy[20:]))
    yield Case("webp-stated-16m-x-16m", "webp", widest, TOO_LARGE, 2**24, 2**24)
    bits = (big - 1) | (big - 1) << 14
    flat = riff((b"VP8L", b"\x2f" + struct.pack("<I", bits) + bytes(40)))
    yield Case("webp-lossless-stated-16384x16384", "webp", flat, TOO_LARGE, big, big)


# --- GIF


def gif_frame(data: bytes) -> int:
    """Return the position of the first frame's descriptor."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    return at


def _gifs() -> Iterator[Case]:
    ok = functools.partial(Case, extension="gif", status=OK, width=WIDTH, height=HEIGHT)
    image = picture().quantize(64)
    plain = encode(image, "GIF")
    frame = gif_frame(plain)
    moving = encode(image, "GIF", save_all=True, append_images=[image.rotate(90), image.rotate(180)], duration=40)
    yield ok("gif", data=plain)
    yield ok("gif-animated", data=moving)
    yield ok("gif-animated-cut-in-second-frame", data=moving[:-30])
    yield ok("gif-transparent", data=encode(image, "GIF", transparency=5))
    yield ok("gif-grey", data=encode(picture().convert("L"), "GIF"))
    yield ok("gif-interlaced", data=encode(image, "GIF", interlace=1))
    yield ok("gif-trailing-garbage", data=plain + noise(500))
    yield ok("gif-canvas-larger-than-frame", data=patch(plain, 6, struct.pack("<HH", 200, 90)), width=200, height=90)

    bad = functools.partial(Case, extension="gif", status=UNDECODABLE)
    known = functools.partial(bad, width=WIDTH, height=HEIGHT)
    yield bad("gif-signature-only", data=plain[:6])
    yield bad("gif-cut-in-palette", data=plain[:40])
    yield bad("gif-cut-in-descriptor", data=plain[: frame + 5])
    yield known("gif-cut-in-data", data=plain[: (frame + len(plain)) // 2])
    yield bad("gif-without-frame", data=plain[:frame] + b";")
    yield known("gif-data-missing", data=plain[: frame + 11] + b"\0;")
    yield bad("gif-canvas-0x0", data=patch(patch(plain, 6, bytes(4)), frame + 5, bytes(4)))
    most = 65_535
    wide = struct.pack("<HH", most, most)
    yield Case("gif-bomb-of-canvas", "gif", patch(plain, 6, wide), TOO_LARGE, most, most)
    yield Case("gif-bomb-of-frame", "gif", patch(plain, frame + 5, wide), TOO_LARGE)
    yield Case("gif-frame-of-150-megapixels", "gif", patch(plain, frame + 5, struct.pack("<HH", 15_000, 10_000)),
               TOO_LARGE, 15_000, 10_000)  # fmt: skip


# --- BMP


def bmp(width: int, height: int, bits: int, data: bytes, *, compression: int = 0, palette: bytes = b"") -> bytes:
    """Return a Windows bitmap."""
    offset = 54 + len(palette)
    head = struct.pack("<2sIII", b"BM", offset + len(data), 0, offset)
    colours = len(palette) // 4
    info = struct.pack(
        "<IIiHHIIiiII", 40, width & 0xFFFFFFFF, height, 1, bits, compression, len(data), 0, 0, colours, 0
    )
    return head + info + palette + data


def _bmps() -> Iterator[Case]:
    ok = functools.partial(Case, extension="bmp", status=OK, width=WIDTH, height=HEIGHT)
    image = picture()
    plain = encode(image, "BMP")
    pixels = plain[54:]
    greys = b"".join(bytes((i, i, i, 0)) for i in range(256))
    runs = b"".join(bytes((WIDTH, y, 0, 0)) for y in range(HEIGHT)) + b"\0\1"
    yield ok("bmp", data=plain)
    yield ok("bmp-top-down", data=bmp(WIDTH, -HEIGHT, 24, pixels))
    yield ok("bmp-1-bit", data=encode(image.convert("1"), "BMP"))
    yield ok("bmp-palette", data=encode(image.quantize(200), "BMP"))
    yield ok("bmp-16-bit", data=bmp(WIDTH, HEIGHT, 16, noise(WIDTH * HEIGHT * 2)))
    yield ok("bmp-32-bit", data=bmp(WIDTH, HEIGHT, 32, noise(WIDTH * HEIGHT * 4)))
    yield ok("bmp-run-lengths", data=bmp(WIDTH, HEIGHT, 8, runs, compression=1, palette=greys))
    yield ok("bmp-trailing-garbage", data=plain + noise(500))

    bad = functools.partial(Case, extension="bmp", status=UNDECODABLE)
    known = functools.partial(bad, width=WIDTH, height=HEIGHT)
    yield bad("bmp-signature-only", data=b"BM")
    yield bad("bmp-cut-in-header", data=plain[:30])
    yield known("bmp-header-only", data=plain[:54])
    yield known("bmp-cut", data=plain[: len(plain) // 2])
    yield bad("bmp-0x0", data=bmp(0, 0, 24, pixels))
    yield bad("bmp-5-bit", data=bmp(WIDTH, HEIGHT, 5, pixels))
    yield bad("bmp-compression-99", data=bmp(WIDTH, HEIGHT, 24, pixels, compression=99))
    yield bad("bmp-starts-as-text", data=b"BMW is a maker of cars, and this is no picture of one.\n")
    most, rows = 2**31 - 1, 2**24
    yield Case("bmp-absurd-height", "bmp", bmp(WIDTH, most, 24, pixels), TOO_LARGE, WIDTH, most)
    yield Case("bmp-absurd-negative-height", "bmp", bmp(WIDTH, -rows, 24, pixels), TOO_LARGE, WIDTH, rows)
    yield Case("bmp-absurd-width", "bmp", bmp(most, HEIGHT, 24, pixels), TOO_LARGE, most, HEIGHT)


# --- TIFF

Tag = tuple[int, int, list[int]]
_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff(tags: list[Tag], data: bytes = b"", *, order: str = "<", at_data: bool = True) -> bytes:
    """Return a TIFF of one directory.

    Args:
        tags: (tag, kind, values); kinds 1, 3 and 4 are integers of 8, 16 and 32 bits.
        data: Strips or tiles.
        order: "<" or ">".
        at_data: Whether offsets of strips and tiles (tags 273, 324) count from the first byte of `data`.
    """
    spill_at = 8 + 2 + 12 * len(tags) + 4
    spill = sum(size for _, kind, values in tags if (size := struct.calcsize(_KINDS[kind]) * len(values)) > 4)
    directory, outside = struct.pack(f"{order}H", len(tags)), b""
    for tag, kind, values in sorted(tags):
        base = spill_at + spill if at_data and tag in (273, 324) else 0
        packed = struct.pack(f"{order}{len(values)}{_KINDS[kind]}", *(base + value for value in values))
        if len(packed) > 4:
            outside += packed
            packed = struct.pack(f"{order}I", spill_at + len(outside) - len(packed))
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8) + directory + bytes(4) + outside + data


def strip(
    samples: np.ndarray, *, kind: int = 1, order: str = "<", extra: tuple[Tag, ...] = (), at_data: bool = True
) -> bytes:
    """Return an uncompressed TIFF of one strip; `kind` is 1 for unsigned, 2 for signed integers, 3 for floats."""
    height, width, channels = samples.shape
    bits, data = samples.itemsize * 8, samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    tags: list[Tag] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]),
        (262, 3, [2 if channels >= 3 else 1]), (273, 4, [0]), (277, 3, [channels]), (278, 4, [height]),
        (279, 4, [len(data)]), (339, 3, [kind] * channels),
    ]  # fmt: skip
    changed = {tag for tag, *_ in extra}
    return tiff([each for each in tags if each[0] not in changed] + list(extra), data, order=order, at_data=at_data)


def _big_tiff() -> bytes:
    """Return a TIFF with offsets of 8 bytes."""
    data = np.asarray(picture().convert("L")).tobytes()
    tags = [(256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 16, 16 + 8 + 20 * 9 + 8),
            (277, 3, 1), (278, 4, HEIGHT), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(tags)) + entries + bytes(8) + data


def _tiffs() -> Iterator[Case]:
    ok = functools.partial(Case, extension="tiff", status=OK, width=WIDTH, height=HEIGHT)
    image, grey = picture(), picture().convert("L")
    rgb = np.asarray(image)
    level = np.asarray(grey)[:, :, None]
    plain = encode(image, "TIFF")
    yield ok("tiff", data=plain)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield ok(f"tiff-{compression.replace('_', '-')}", data=encode(image, "TIFF", compression=compression))
    yield ok("tiff-1-bit-fax", data=encode(grey.convert("1"), "TIFF", compression="group4"))
    yield ok("tiff-16-bit-grey", data=strip(level.astype(np.uint16) * 257))
    yield ok("tiff-16-bit-grey-big-endian", data=strip(level.astype(np.uint16) * 257, order=">"))
    yield ok("tiff-16-bit-rgb", data=strip(rgb.astype(np.uint16) * 257))
    yield ok("tiff-big-endian", data=strip(rgb, order=">"))
    yield ok("tiff-8-byte-offsets", data=_big_tiff())
    yield ok("tiff-cmyk", data=encode(image.convert("CMYK"), "TIFF"))
    yield ok("tiff-palette", data=encode(image.quantize(32), "TIFF"))
    yield ok("tiff-of-two-pages", data=encode(image, "TIFF", save_all=True, append_images=[picture(30, 20)]))
    yield ok("tiff-orientation-6", data=strip(rgb, extra=((274, 3, [6]),)))
    yield ok("tiff-trailing-garbage", data=plain + noise(500))
    # Some encoders write one strip for each row of a tall image.
    rows = 5000
    tags: list[Tag] = [(256, 4, [1]), (257, 4, [rows]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]),
                       (273, 4, list(range(rows))), (277, 3, [1]), (278, 4, [1]), (279, 4, [1] * rows)]  # fmt: skip
    yield ok("tiff-of-5000-strips", data=tiff(tags, noise(rows)), width=1, height=rows)

    yield Case("tiff-float", "tif", strip(level.astype(np.float32), kind=3), UNSUPPORTED, WIDTH, HEIGHT)
    yield Case("tiff-32-bit-signed", "tif", strip(level.astype(np.int32), kind=2), UNSUPPORTED, WIDTH, HEIGHT)
    yield Case("tiff-32-bit-unsigned", "tif", strip(level.astype(np.uint32)), UNSUPPORTED, WIDTH, HEIGHT)

    bad = functools.partial(Case, extension="tif", status=UNDECODABLE)
    known = functools.partial(bad, width=WIDTH, height=HEIGHT)
    yield bad("tiff-signature-only", data=plain[:4])
    yield bad("tiff-directory-far-away", data=b"II*\0\xf0\xff\xff\x7f" + bytes(100))
    yield bad("tiff-directory-empty", data=b"II*\0\x08\0\0\0" + bytes(100))
    yield bad("tiff-size-missing", data=strip(rgb, extra=((256, 4, []),)))
    whole = strip(rgb)
    yield known("tiff-cut", data=whole[: len(whole) // 2])
    yield known("tiff-lzw-cut", data=_cut_strip(encode(image, "TIFF", compression="tiff_lzw")))
    yield known("tiff-strip-far-away", data=strip(rgb, extra=((273, 4, [2**31]),)))
    yield bad("tiff-compression-99", data=strip(rgb, extra=((259, 3, [99]),)))
    yield bad("tiff-bits-11", data=strip(rgb, extra=((258, 3, [11, 11, 11]),)))
    yield bad("tiff-0x0", data=strip(rgb, extra=((256, 4, [0]), (257, 4, [0]))))
    yield bad("tiff-of-a-billion-strips", data=_stated_count(whole, 273, 2**30))
    count = 150_000
    yield bad("tiff-of-150000-strips", data=strip(rgb[:1], extra=((273, 3, [0] * count),), at_data=False))
    most = 200_000
    size = ((256, 4, [most]), (257, 4, [most]))
    yield Case("tiff-stated-200000x200000", "tif", strip(rgb, extra=size), TOO_LARGE, most, most)
    side = 2**15
    tile: list[Tag] = [(256, 4, [8]), (257, 4, [8]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1]), (277, 3, [1]),
                       (322, 4, [side]), (323, 4, [side]), (324, 4, [0]), (325, 4, [100])]  # fmt: skip
    yield Case("tiff-bomb-of-a-tile", "tif", tiff(tile, bytes(100_000)), TOO_LARGE, 8, 8)


def _cut_strip(data: bytes) -> bytes:
    """Overwrite the second half of the first strip; the directory may come first or last."""
    with Image.open(io.BytesIO(data)) as image:
        offset, size = image.tag_v2[273][0], image.tag_v2[279][0]
    return patch(data, offset + size // 2, b"\xff" * (size - size // 2))


def _stated_count(data: bytes, tag: int, count: int) -> bytes:
    """Overwrite the number of a tag's values."""
    at = next(at for at in range(10, len(data), 12) if struct.unpack_from("<H", data, at) == (tag,))
    return patch(data, at + 4, struct.pack("<I", count))


# --- Everything else


def _others() -> Iterator[Case]:
    bad = functools.partial(Case, extension="jpg", status=UNDECODABLE)
    yield Case("empty", "jpg", b"", EMPTY)
    yield Case("empty-png", "png", b"", EMPTY)
    yield bad("one-byte", data=b"\xff")
    yield bad("two-bytes", data=b"\xff\xd8")
    yield bad("zeros", data=bytes(4096))
    yield bad("ones", data=b"\xff" * 4096)
    yield bad("garbage", data=b"\x93" + noise(4095))
    yield bad("text", data=b"The image you asked for was not found.\n")
    yield bad("html", data=b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n")
    yield bad("json", data=b'{"error": "AccessDenied"}')
    yield bad("pickle", data=b"\x80\x05\x95" + noise(60))
    yield bad("gzip-of-an-image", data=b"\x1f\x8b\x08" + noise(60))
    yield bad("zip", data=b"PK\3\4" + noise(60))

    def box(brand: bytes) -> bytes:
        return b"\0\0\0\x20ftyp" + brand + bytes(20) + noise(300)

    no = functools.partial(Case, status=UNSUPPORTED)
    for name, data in {
        "avif": box(b"avif"),
        "avif-sequence": box(b"avis"),
        "heic": box(b"heic"),
        "heif": box(b"mif1"),
        "mp4": box(b"isom"),
        "photoshop": b"8BPS\0\1" + noise(300),
        "pdf": b"%PDF-1.7\n" + noise(300),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "xml": b'<?xml version="1.0"?><svg/>',
        "jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n" + noise(300),
        "jpeg-2000-codestream": b"\xff\x4f\xff\x51" + noise(300),
        "jpeg-xl": b"\xff\x0a" + noise(300),
        "ico": b"\0\0\1\0\1\0" + noise(300),
        "exr": b"v/1\1" + noise(300),
        "hdr": b"#?RADIANCE\n" + noise(300),
        "pnm": b"P6\n8 8\n255\n" + noise(192),
    }.items():
        yield no(f"{name}-named-jpg", "jpg", data)
    yield no("avif-named-png", "png", box(b"avif"))


@functools.cache
def corpus() -> tuple[Case, ...]:
    """Return all cases, with unique names. The first call takes about a second."""
    makers = (_others, _jpegs, _pngs, _webps, _gifs, _bmps, _tiffs)
    cases = tuple(case for maker in makers for case in maker())
    assert len({case.name for case in cases}) == len(cases)
    return cases
