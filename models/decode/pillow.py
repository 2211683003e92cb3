"""Decode with Pillow; its global settings and its dozen kinds of exceptions are handled only here."""

from __future__ import annotations

import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.decode.headers import ImageFormat, ImageLimits, exif_orientation
from models.errors import ImageTooLargeError, InputError, UndecodableImageError, UnsupportedImageError

_MAX_REASON_CHARS = 160

# The plugins are called directly: `Image.open` also opens unsupported formats (EPS starts a program), puts memory
# addresses into messages, and warns about sizes that our limits allow. The JPEG plugin reads an MPO's first frame.
_PLUGINS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    ImageFormat.JPEG: JpegImageFile,
    ImageFormat.PNG: PngImageFile,
    ImageFormat.WEBP: WebPImageFile,
    ImageFormat.GIF: GifImageFile,
    ImageFormat.BMP: BmpImageFile,
    ImageFormat.TIFF: TiffImageFile,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(image_format: ImageFormat, data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Read an image's header; no pixel is decoded.

    Raises:
        ImageTooLargeError: The first frame of a GIF is too large; it may be larger than the size in the header.
        UndecodableImageError: The header is broken.
    """
    _configure_pillow()
    _raise_pillow_limit(limits.max_pixels)
    with undecodable(image_format):
        try:
            return _PLUGINS[image_format](BytesIO(data))
        except Image.DecompressionBombError as error:  # over twice Pillow's limit, which is at least ours
            raise ImageTooLargeError(
                f"image has a frame with too many pixels; max_pixels is {limits.max_pixels:,}"
            ) from error


def stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return (width, height) as stored in the file; for a TIFF, Pillow's `size` is that of the upright image."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return image.size


def stored_orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation (1 to 8) that has not been applied yet to a loaded image.

    A PNG may store it behind its pixels. For a TIFF it is 1: Pillow turns a TIFF upright while it loads it.
    """
    return exif_orientation(image.info.get("exif", b""))


def load_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Decode the whole image (the first one, if the file has several), and convert it to RGB.

    Transparency is dropped; the colours under it are kept. 16-bit samples lose their lower 8 bits.

    Raises:
        UnsupportedImageError: The samples are 32-bit integers or floats: it is unknown which value is white.
    """
    image.load()
    # `convert("RGB")` would only warn about it; no pixel changes.
    image.info.pop("transparency", None)
    if image.mode in ("I", "F"):
        width, height = stored_size(image)
        raise UnsupportedImageError(
            "samples must be integers of 1 to 16 bits, got 32-bit ones", width=width, height=height
        )
    if image.mode.startswith("I;16"):  # `convert` would turn every value above 255 into white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":
        return image
    rgb = image.convert("RGB")
    image.close()  # its pixels, not its metadata
    return rgb


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation (1 to 8)."""
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


@contextmanager
def undecodable(image_format: ImageFormat, width: int | None = None, height: int | None = None) -> Iterator[None]:
    """Turn any exception of a decoder into UndecodableImageError; the project's own errors pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = _one_line(str(error) or type(error).__name__)
        raise UndecodableImageError(
            f"{image_format} cannot be decoded: {reason}", width=width, height=height
        ) from error


def _one_line(text: str) -> str:
    """Make a library's message fit for a row: one line, the same on every run, printable, short."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", text)
    text = " ".join(text.split()).encode("unicode_escape").decode()
    return text if len(text) <= _MAX_REASON_CHARS else text[: _MAX_REASON_CHARS - 3] + "..."


@functools.cache
def _configure_pillow() -> None:
    """Silence Pillow's warnings about damaged metadata, once per process.

    `warnings.catch_warnings` around each call would not be thread-safe.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


_limit_lock = threading.Lock()


def _raise_pillow_limit(max_pixels: int) -> None:
    """Raise Pillow's own limit of 89 megapixels to `max_pixels` if it is lower.

    Pillow's limit is global, and some plugins check it while they load. It is never lowered, so that threads with
    different limits do not disturb each other; our own limit is checked first.
    """
    if Image.MAX_IMAGE_PIXELS is None or max_pixels <= Image.MAX_IMAGE_PIXELS:
        return
    with _limit_lock:
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
