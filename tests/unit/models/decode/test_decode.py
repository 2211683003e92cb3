"""Decoding: the reference's geometry and filters, colours, limits, damage. The corpus has its own test."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, WebPImagePlugin

from models.catalog import load_spec
from models.decode.decode import MAX_RESIZED_PIXELS, DecodedImage, DecodeMode, ImageLimits, decode_image
from models.decode.headers import exif_orientation
from models.decode.jpeg import dct_factor, decode_jpeg
from models.decode.pillow import undecodable
from models.decode.resize import Axis, crop_axes, resize_crop, resize_crop_simd
from models.errors import (
    EmptyImageError,
    ImageTooLargeError,
    InputError,
    UndecodableImageError,
    UnsupportedImageError,
)
from models.spec import Fit, Interpolation, Preprocessing
from tests.support.image_corpus import (
    END,
    chunk,
    encode,
    exif,
    frame_header,
    gif_frame,
    patch,
    picture,
    png,
    png_header,
    riff,
    scans,
    segment,
    sized,
    strip,
    tiff,
    with_exif,
    zeros_packed,
)

MODES = list(DecodeMode)
LIMITS = ImageLimits()
both_modes = pytest.mark.parametrize("mode", MODES)


def preprocessing(interpolation="bilinear", *, resize=256, crop=224) -> Preprocessing:
    return Preprocessing(
        resize_shorter=resize, crop=crop, interpolation=interpolation, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3
    )


SMALL = preprocessing(resize=64, crop=56)


def decode(data, mode, wanted=SMALL, limits=LIMITS) -> np.ndarray:
    return decode_image(data, wanted, mode, limits).pixels


def noisy(width: int, height: int) -> Image.Image:
    # Nothing near 0 or 255: there the bicubic filter overshoots, and its result depends on the order of the axes.
    return Image.fromarray(np.random.default_rng(width * height).integers(60, 196, (height, width, 3), np.uint8))


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(np.int16) - other)


def reference(data: bytes, wanted: Preprocessing) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    short, long = sorted(image.size)
    ratio = wanted.resize_shorter / short
    other = int(round(ratio * long))  # noqa: RUF046 (as the reference has it)
    size = (wanted.resize_shorter, other) if image.width < image.height else (other, wanted.resize_shorter)
    image = image.resize(size, {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[wanted.interpolation])
    left, top = (side // 2 - wanted.crop // 2 for side in size)
    return np.asarray(image)[top : top + wanted.crop, left : left + wanted.crop]


# --- Geometry and filters


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    resize=st.integers(8, 90),
    data=st.data(),
)
def test_exact_is_the_reference_and_fast_differs_by_rounding(width, height, interpolation, resize, data):
    wanted = preprocessing(interpolation, resize=resize, crop=data.draw(st.integers(1, resize)))
    file = encode(noisy(width, height), "BMP")

    exact, fast = (decode(file, mode, wanted) for mode in (DecodeMode.EXACT, DecodeMode.FAST))

    np.testing.assert_array_equal(exact, reference(file, wanted))
    # Pillow chooses by their sizes whether it resizes rows or columns first, and rounds after each.
    assert difference(fast, exact).max() <= 2


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 1200),
    height=st.integers(1, 1200),
    orientation=st.integers(1, 8),
    interpolation=st.sampled_from(list(Interpolation)),
    fit=st.sampled_from(list(Fit)),
    resize=st.integers(8, 300),
    factor=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
def test_resizing_with_simd_differs_from_pillow_by_rounding(
    width, height, orientation, interpolation, fit, resize, factor, data
):
    pytest.importorskip("cykooz_resizer", reason="has no wheel for this machine")
    crop = data.draw(st.integers(1, resize))
    wanted = preprocessing(interpolation, resize=resize, crop=crop).model_copy(update={"fit": fit})
    x, y = crop_axes(width, height, orientation, wanted)
    reduced = np.asarray(noisy(-(-width // factor), -(-height // factor)))

    simd = resize_crop_simd(reduced, x, y, interpolation, factor=factor)

    assert simd.shape == (crop, crop, 3)
    assert difference(simd, np.asarray(resize_crop(reduced, x, y, interpolation, factor=factor))).max() <= 2


def test_where_the_simd_library_is_missing_pillow_resizes(monkeypatch):
    data, wanted = encode(noisy(500, 375), "JPEG", quality=95), preprocessing("bicubic")
    image = np.asarray(Image.open(io.BytesIO(data)))
    x, y = crop_axes(500, 375, 1, wanted)
    monkeypatch.setattr("models.decode.resize.fir", None)

    fast = decode(data, DecodeMode.FAST, wanted)

    np.testing.assert_array_equal(fast, np.asarray(resize_crop(image, x, y, Interpolation.BICUBIC)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("image_format", ["JPEG", "BMP"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (256, 256), (257, 300), (90, 120), (1000, 800)])
def test_fast_differs_from_exact_in_few_values_below_four_times_the_size(size, image_format, interpolation):
    data = encode(noisy(*size), image_format, quality=95)

    fast, exact = (decode(data, mode, preprocessing(interpolation)) for mode in MODES)

    assert difference(fast, exact).mean() < 0.01


@pytest.mark.parametrize("size", [(1024, 1024), (1400, 1100), (1101, 2051), (2200, 2048)])
def test_fast_is_near_to_exact_where_a_jpeg_is_reduced_as_it_is_decoded(size):
    data = encode(picture(*size), "JPEG", quality=95)

    fast, exact = (decode(data, mode, preprocessing("bicubic")) for mode in MODES)

    # A shift by half a source pixel of the reduced image would differ by more.
    assert difference(fast, exact).mean() < 0.35
    assert not (fast == exact).all()


def test_fast_does_not_take_a_jpeg_for_reduced_that_pillow_decoded_whole():
    data = encode(picture(1100, 1050).convert("CMYK"), "JPEG")

    fast, exact = (decode(data, mode, preprocessing()) for mode in MODES)

    assert difference(fast, exact).mean() < 0.01


@pytest.mark.parametrize(
    ("shorter", "factor"), [(1, 1), (1023, 1), (1024, 2), (2047, 2), (2048, 4), (4095, 4), (4096, 8), (60_000, 8)]
)
def test_a_jpeg_is_reduced_so_that_two_pixels_are_left_per_pixel(shorter, factor):
    assert dct_factor(shorter, 256) == factor


def test_the_crop_of_a_stored_image_is_that_of_the_upright_one():
    wanted = preprocessing(resize=8, crop=5)

    # Upright 9 x 8: 2 pixels left of the crop and 2 right; 2 above and 1 below.
    assert crop_axes(9, 8, 1, wanted) == (Axis(9, 9, 2, 5), Axis(8, 8, 2, 5))
    assert crop_axes(9, 8, 3, wanted) == (Axis(9, 9, 2, 5), Axis(8, 8, 1, 5))
    assert crop_axes(8, 9, 6, wanted) == (Axis(8, 8, 2, 5), Axis(9, 9, 2, 5))
    assert crop_axes(8, 9, 7, wanted) == (Axis(8, 8, 1, 5), Axis(9, 9, 2, 5))


STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@both_modes
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WebP", "TIFF"])
def test_each_orientation_is_shown_upright_and_the_stored_size_reported(image_format, orientation, mode):
    upright = np.asarray(picture(151, 100))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    block = exif(orientation)
    if image_format == "JPEG":
        data = with_exif(encode(stored, "JPEG", quality=98, subsampling=0), block)
    elif image_format == "TIFF":
        data = strip(np.asarray(stored), extra=((274, 3, [orientation]),))
    else:
        data = encode(stored, image_format, exif=block, lossless=True)

    found = decode_image(data, SMALL, mode, LIMITS)

    assert difference(found.pixels, decode(encode(Image.fromarray(upright), "BMP"), DecodeMode.EXACT)).mean() < 1
    assert (found.width, found.height) == stored.size


@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (b"", 1),
        (b"Exif\0\0" + exif(6), 6),
        (tiff([(274, 3, [8])], order=">"), 8),
        (tiff([(274, 4, [3])]), 3),
        (tiff([(256, 3, [7]), (274, 3, [5])]), 5),
        (tiff([(274, 3, [0])]), 1),
        (tiff([(274, 3, [9])]), 1),
        (tiff([(274, 3, [6, 6, 6])]), 1),
        (tiff([(274, 3, [6, 6])]), 1),
        (exif(6)[:18], 1),
        (b"II*\0" + b"\xff" * 4, 1),
        (b"XX" + exif(6)[2:], 1),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, 1),
    ],
)
def test_the_orientation_of_an_exif_block_is_read_or_upright(block, orientation):
    assert exif_orientation(block) == orientation


# --- Colours


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (20, 20), colour)


def palette_image(**options) -> bytes:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 90])
    return encode(image, "PNG", **options)


def level_16(order: str = "<") -> bytes:
    return strip(np.full((20, 20, 1), 0x90FE, np.uint16), order=order)


GREEN = (10, 200, 90)
COLOURS = {
    "grey": (encode(flat("L", 77), "PNG"), (77, 77, 77)),
    "grey-alpha": (encode(flat("LA", (77, 0)), "PNG"), (77, 77, 77)),
    "1-bit": (encode(flat("1", 1), "PNG"), (255, 255, 255)),
    "palette": (palette_image(), GREEN),
    "palette-transparent": (palette_image(transparency=1), GREEN),
    "palette-of-alphas": (palette_image(transparency=b"\0\0"), GREEN),
    "rgb-transparent-colour": (encode(flat("RGB", GREEN), "PNG", transparency=GREEN), GREEN),
    "transparent-rgba": (encode(flat("RGBA", (*GREEN, 0)), "PNG"), GREEN),
    "16-bit-grey-png": (png(np.full((20, 20, 1), 0x90FE, np.uint16), 16, 0), (0x90,) * 3),
    "16-bit-grey-tiff": (level_16(), (0x90,) * 3),
    "16-bit-grey-tiff-big-endian": (level_16(">"), (0x90,) * 3),
    "16-bit-rgb-png": (png(np.full((20, 20, 3), (0x10FE, 0x2001, 0xFF00), np.uint16), 16, 2), (0x10, 0x20, 0xFF)),
    "cmyk-tiff": (encode(flat("CMYK", (255, 0, 255, 0)), "TIFF"), (0, 255, 0)),
    "cmyk-jpeg-of-adobe": (encode(flat("CMYK", (255, 0, 255, 0)), "JPEG", quality=100), (0, 255, 0)),
    "gif-first-frame": (encode(flat("RGB", GREEN), "GIF", save_all=True, append_images=[flat("RGB", "red")]), GREEN),
    "png-first-frame": (encode(flat("RGB", GREEN), "PNG", save_all=True, append_images=[flat("RGB", "red")]), GREEN),
    "webp-first-frame": (
        encode(flat("RGB", GREEN), "WebP", save_all=True, append_images=[flat("RGB", "red")], lossless=True),
        GREEN,
    ),
    "tiff-first-page": (encode(flat("RGB", GREEN), "TIFF", save_all=True, append_images=[flat("RGB", "red")]), GREEN),
    "mpo-first-frame": (encode(flat("RGB", "white"), "MPO", save_all=True, append_images=[flat("L", 0)]), (255,) * 3),
}


@both_modes
@pytest.mark.parametrize("name", COLOURS)
def test_any_kind_of_samples_becomes_rgb(name, mode):
    data, colour = COLOURS[name]

    assert (decode(data, mode).reshape(-1, 3) == colour).all()


@pytest.mark.parametrize("name", ["palette-transparent", "palette-of-alphas", "rgb-transparent-colour"])
def test_transparency_that_is_dropped_is_no_reason_to_warn(name):
    data, colour = COLOURS[name]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(data, DecodeMode.FAST).reshape(-1, 3) == colour).all()


def test_simplejpeg_decodes_to_what_pillow_decodes_to():
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 20}):
        data = encode(noisy(101, 67), "JPEG", **options)

        np.testing.assert_array_equal(decode_jpeg(data, 101, 67, 1), np.asarray(Image.open(io.BytesIO(data))))


def test_a_jpeg_that_pillow_is_to_decode_is_left_to_it(monkeypatch):
    plain = encode(picture(40, 30), "JPEG")

    assert decode_jpeg(encode(picture(40, 30).convert("CMYK"), "JPEG"), 40, 30, 1) is None
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    assert decode_jpeg(plain, 41, 30, 1) is None
    assert decode_jpeg(plain[:2] + b"\0\0\0" + plain[2:], 40, 30, 1) is None


# --- Limits

ZEROS = chunk(b"IDAT", zeros_packed(30_000 * 3751)) + END


@both_modes
def test_limits_are_inclusive(mode):
    data = encode(picture(40, 30), "PNG")
    just = ImageLimits(max_pixels=1200, max_image_bytes=len(data))

    assert decode(data, mode, limits=just).shape == (56, 56, 3)
    with pytest.raises(ImageTooLargeError, match=rf"^image has {len(data):,} bytes; max_image_bytes is 10$") as caught:
        decode(data, mode, limits=ImageLimits(max_image_bytes=10))
    assert (caught.value.width, caught.value.height) == (None, None)
    message = r"^image has 1,200 pixels \(40 x 30\); max_pixels is 1,199$"
    with pytest.raises(ImageTooLargeError, match=message) as caught:
        decode(data, mode, limits=ImageLimits(max_pixels=1199))
    assert (caught.value.width, caught.value.height) == (40, 30)


@both_modes
@pytest.mark.parametrize(
    "data",
    [
        png_header(30_000, 30_000, 1, 0) + ZEROS,
        sized(encode(picture(), "JPEG"), 30_000, 30_000),
        patch(encode(picture(), "GIF"), 6, struct.pack("<HH", 30_000, 30_000)),
        strip(np.asarray(picture()), extra=((256, 4, [30_000]), (257, 4, [30_000]))),
        patch(encode(picture(), "BMP"), 18, struct.pack("<II", 30_000, 30_000)),
        riff((b"VP8X", bytes(4) + (29_999).to_bytes(3, "little") * 2)),
    ],
    ids=["png", "jpeg", "gif", "tiff", "bmp", "webp"],
)
def test_too_many_pixels_are_told_by_the_header_alone(data, mode, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", lambda _: pytest.fail("it has a canvas already"))

    with pytest.raises(ImageTooLargeError) as caught:
        decode(data, mode)

    assert (caught.value.width, caught.value.height) == (30_000, 30_000)


@pytest.mark.parametrize(
    "options", [{"quality": 50}, {"lossless": True}, {"save_all": True, "append_images": [picture()]}]
)
def test_the_size_of_a_webp_is_read_before_it_is_opened(options, monkeypatch):
    data = encode(picture(96, 64), "WebP", **options)
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", lambda _: pytest.fail("it has a canvas already"))

    with pytest.raises(ImageTooLargeError, match=r"\(96 x 64\)"):
        decode(data, DecodeMode.FAST, limits=ImageLimits(max_pixels=6000))


def test_the_first_frame_of_a_gif_need_not_fit_its_header():
    data = encode(picture(), "GIF")
    data = patch(data, gif_frame(data) + 5, struct.pack("<HH", 65_535, 65_535))

    with pytest.raises(
        ImageTooLargeError, match=r"^image has a frame with too many pixels; max_pixels is 100,000,000$"
    ):
        decode(data, DecodeMode.FAST)


@both_modes
@pytest.mark.parametrize("image_format", ["TIFF", "GIF", "WebP"])
def test_a_limit_above_that_of_pillow_holds(image_format, mode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encode(picture(90, 60), image_format)

    assert decode(data, mode, limits=ImageLimits(max_pixels=5400)).shape == (56, 56, 3)
    with pytest.raises(ImageTooLargeError):
        decode(data, mode, limits=ImageLimits(max_pixels=5399))
    assert Image.MAX_IMAGE_PIXELS == 5400


@both_modes
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9000)])
def test_an_extreme_aspect_ratio_takes_no_more_memory_than_the_crop_needs(size, mode, monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a, **k: sizes.append(to) or resize(self, to, *a, **k))
    wanted = preprocessing()

    pixels = decode(encode(picture(*size), "PNG"), mode, wanted)

    assert pixels.shape == (224, 224, 3)
    assert pixels.std() > 0
    assert all(width * height <= MAX_RESIZED_PIXELS for width, height in sizes)


def test_scans_of_a_video_behind_the_image_do_not_count():
    data = encode(picture(), "JPEG", progressive=True)

    assert decode(data + b"\0\2" + b"\xff\xda\0\2" * 1000, DecodeMode.FAST).shape == (56, 56, 3)


def test_scans_of_a_thumbnail_do_not_count():
    data = encode(picture(), "JPEG", progressive=True)
    place = scans(data)[0]

    thumbnail = segment(0xE1, b"\xff\xda\0\2" * 1000)

    assert decode(data[:place] + thumbnail + data[place:], DecodeMode.FAST).shape == (56, 56, 3)


# --- What is refused, and in which words

PLAIN = encode(picture(), "JPEG", quality=90)
PROGRESSIVE = encode(picture(), "JPEG", quality=90, progressive=True)
PLAIN_PNG = encode(picture(), "PNG")
EARLY = "JPEG cannot be decoded: its data are truncated"
FAR_AWAY = b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(40)
REFUSED = {
    "nothing": (b"", EmptyImageError, "image has no bytes"),
    "text": (b"Not found", UndecodableImageError, "image must be one of .*, got bytes that start with 4e6f7420"),
    "avif": (b"\0\0\0 ftypavif", UnsupportedImageError, "image must be one of JPEG, PNG, WebP, GIF, BMP, TIFF, got .*"),
    "float": (
        strip(np.ones((9, 9, 1), np.float32), kind=3),
        UnsupportedImageError,
        "samples must be integers of 1 to 16 bits, got 32-bit ones",
    ),
    "cut-by-1": (PLAIN[:-1], UndecodableImageError, EARLY),
    "cut-in-half": (PLAIN[: len(PLAIN) // 2], UndecodableImageError, EARLY),
    "cut-and-ended": (PLAIN[: len(PLAIN) * 3 // 4] + b"\xff\xd9", UndecodableImageError, EARLY),
    "progressive-cut": (PROGRESSIVE[: scans(PROGRESSIVE)[4]], UndecodableImageError, EARLY),
    "progressive-cut-and-ended": (
        PROGRESSIVE[: scans(PROGRESSIVE)[-1] + 60] + b"\xff\xd9",
        UndecodableImageError,
        EARLY,
    ),
    "header-cut": (PLAIN[:30], UndecodableImageError, "JPEG cannot be decoded: .+"),
    "12-bit": (
        patch(PLAIN, frame_header(PLAIN) + 4, b"\x0c"),
        UndecodableImageError,
        "JPEG cannot be decoded: cannot handle 12-bit layers",
    ),
    "scans": (
        PROGRESSIVE[:-2] + PROGRESSIVE[scans(PROGRESSIVE)[-1] : -2] * 200 + b"\xff\xd9",
        UndecodableImageError,
        "JPEG has 2[01]. scans; at most 100 are read of 96 x 64 pixels",
    ),
    "png-cut": (
        PLAIN_PNG[: len(PLAIN_PNG) // 2],
        UndecodableImageError,
        r"PNG cannot be decoded: image file is truncated \(0 bytes not processed\)",
    ),
    "png-header-crc": (patch(PLAIN_PNG, 30, b"\1"), UndecodableImageError, "PNG cannot be decoded: .+"),
    "webp-cut": (encode(picture(), "WebP")[:-9], UndecodableImageError, "WebP cannot be decoded: .+"),
    "gif-cut": (encode(picture(), "GIF")[:-90], UndecodableImageError, "GIF cannot be decoded: .+"),
    "bmp-cut": (encode(picture(), "BMP")[:-1], UndecodableImageError, "BMP cannot be decoded: .+"),
    "tiff-cut": (strip(np.asarray(picture()))[:-1], UndecodableImageError, "TIFF cannot be decoded: .+"),
    "tiff-strips": (
        tiff([(256, 4, [9]), (257, 4, [9]), (273, 3, [0] * 140_000)], at_data=False),
        UndecodableImageError,
        "TIFF has 140,000 strips or tiles; at most 131,072 are read",
    ),
    "tiff-directory-at-2-to-the-64": (FAR_AWAY, UndecodableImageError, "TIFF cannot be decoded: .+"),
    "tiff-strips-told-twice": (
        tiff([(256, 4, [9]), (257, 4, [9]), (273, 3, [0] * 140_000), (273, 4, [0])], at_data=False),
        UndecodableImageError,
        "TIFF has 140,000 strips or tiles; at most 131,072 are read",
    ),
    "tiff-tile": (
        tiff([(256, 4, [9]), (257, 4, [9]), (322, 4, [60_000]), (323, 4, [60_000])]),
        ImageTooLargeError,
        "TIFF has tiles of 60000 x 60000 pixels; max_pixels is 100,000,000",
    ),
}


@both_modes
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_in_the_same_words_by_both_modes(name, mode):
    data, kind, message = REFUSED[name]

    with pytest.raises(InputError, match=f"^{message}$") as caught:
        decode(data, mode)

    assert type(caught.value) is kind


def test_a_message_of_a_library_is_made_fit_for_a_row():
    with pytest.raises(UndecodableImageError) as caught, undecodable("PNG", 3, 4):
        raise OSError("cannot\nidentify <_io.BytesIO object at 0x7f12ab> \xe9\x07 " + "x" * 500)
    text = str(caught.value)
    assert text.startswith("PNG cannot be decoded: cannot identify the file \\xe9\\x07 xxx")
    assert text.isprintable()
    assert len(text) < 200
    with pytest.raises(UndecodableImageError, match=r"^GIF cannot be decoded: KeyError$"), undecodable("GIF"):
        raise KeyError
    with pytest.raises(EmptyImageError), undecodable("GIF"):
        raise EmptyImageError("mine")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_anywhere_gives_the_whole_picture_or_none(image_format):
    image = picture(48, 40)
    data = encode(image.quantize(32) if image_format == "GIF" else image, image_format)
    whole = {mode: decode(data, mode) for mode in MODES}
    places = range(0, len(data), max(1, len(data) // 150))

    shown = dict.fromkeys(MODES, 0)
    for place in (*places, *range(len(data) - 40, len(data))):
        for mode in MODES:
            try:
                np.testing.assert_array_equal(decode(data[:place], mode), whole[mode])
                shown[mode] += 1
            except InputError:
                continue
    assert shown[DecodeMode.FAST] == shown[DecodeMode.EXACT]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True}])
def test_both_modes_agree_on_a_jpeg_with_wrong_bits(options):
    data = encode(noisy(120, 90), "JPEG", **options)
    begin, chance = data.index(b"\xff\xda") + 14, random.Random(5)
    ok = 0
    for _ in range(80):
        content = bytearray(data)
        content[chance.randrange(begin, len(data))] ^= 1 << chance.randrange(8)
        found: list[DecodedImage | str] = []
        for mode in MODES:
            try:
                found.append(decode_image(bytes(content), SMALL, mode, LIMITS))
            except InputError as error:
                found.append(str(error))
        if isinstance(found[0], str):
            assert found[0] == found[1]
        else:
            ok += 1
            assert difference(found[0].pixels, found[1].pixels).mean() < 0.1
    assert ok > 0


# --- How it is called


@both_modes
def test_pixels_are_written_to_out(mode):
    data = encode(noisy(90, 80), "JPEG")
    batch = np.zeros((3, 56, 56, 3), np.uint8)

    found = decode_image(data, SMALL, mode, LIMITS, out=batch[1])

    assert found.pixels.base is batch
    np.testing.assert_array_equal(batch[1], decode(data, mode))
    assert not batch[[0, 2]].any()


@both_modes
def test_any_buffer_of_bytes_is_taken(mode):
    data = encode(noisy(90, 80), "JPEG")

    for buffer in (memoryview(data), memoryview(b"x" + data)[1:]):
        np.testing.assert_array_equal(decode(buffer, mode), decode(data, mode))


def test_threads_do_not_disturb_each_other():
    files = [encode(noisy(60 + 7 * i, 90), "JPEG" if i % 2 else "PNG") for i in range(12)]
    jobs = [(file, mode) for file in files for mode in MODES] * 4
    alone = [decode(*job) for job in jobs[: 2 * len(files)]]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: decode(*job), jobs))

    for number, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[number % len(alone)])


WARNING = """
import io, sys
from models.decode.decode import *
from models.errors import InputError
from models.spec import Preprocessing
from tests.support.image_corpus import *
wanted = Preprocessing(resize_shorter=64, crop=56, interpolation="bilinear", scale=1, mean=(0, 0, 0), std=(1, 1, 1))
plain, image = encode(picture(), "JPEG"), picture()
files = [with_exif(plain, b"II*\\0\\x08\\0\\0\\0\\1\\0\\x12\\1\\2\\0\\xff\\0\\0\\0\\xff\\0\\0\\0"),
         encode(image.quantize(8), "PNG", transparency=bytes(8)),
         strip(np.asarray(image), extra=((282, 4, [5, 6]), (270, 1, [7] * 9))) [:-3],
         patch(strip(np.asarray(image)), 22, b"\\x01\\1\\2\\0\\xff\\xff\\0\\0"),
         strip(np.asarray(image), extra=((277, 3, [900]),)),
         encode(image, "PNG")[:33] + chunk(b"acTL", bytes(8)) + encode(image, "PNG")[33:],
         png_header(9500, 9500, 1, 0) + chunk(b"IDAT", zeros_packed(9500 * 1189)) + END]
for file in files:
    for mode in DecodeMode:
        try:
            decode_image(file, wanted, mode, ImageLimits())
            print("ok")
        except InputError as error:
            print(error.status)
"""


@pytest.mark.parametrize("action", ["always", "error"])
def test_warnings_and_logs_of_pillow_go_nowhere_and_change_nothing(action):
    root = Path(__file__).parents[4]

    done = subprocess.run(
        [sys.executable, "-W", action + "::UserWarning", "-c", WARNING],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stderr == ""
    statuses = done.stdout.split()
    assert statuses[::2] == statuses[1::2] == ["ok", "ok", "undecodable", "undecodable", "undecodable", "ok", "ok"]


# --- Photographs


@pytest.mark.data
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photographs_are_decoded_to_the_reference(sample_data, interpolation):
    wanted = load_spec("efficientnet-lite0").preprocessing.model_copy(update={"interpolation": interpolation})
    for path in sorted(sample_data.glob("*.tar"))[:2]:
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
        for file in files:
            exact, fast = (decode(file, mode, wanted) for mode in (DecodeMode.EXACT, DecodeMode.FAST))
            np.testing.assert_array_equal(exact, reference(file, wanted))
            assert difference(fast, exact).mean() < (
                1 if dct_factor(min(Image.open(io.BytesIO(file)).size), 256) > 1 else 0.2
            )
