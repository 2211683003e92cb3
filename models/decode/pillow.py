"""Everything decoded by Pillow, with its global settings and its dozen kinds of exceptions kept in here."""

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

# The plugins themselves and not `Image.open`: it knows formats that are not wanted here (EPS starts a program), puts
# addresses into its messages, and warns of sizes that our own limits allow. A JPEG plugin reads an MPO's first frame.
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
        ImageTooLargeError: The first frame of a GIF, which need not fit the size in its header.
        UndecodableImageError: The header is broken.
    """
    _configure_pillow()
    _raise_pillow_limit(limits.max_pixels)
    with undecodable(image_format):
        try:
            return _PLUGINS[image_format](BytesIO(data))
        except Image.DecompressionBombError as error:  # over twice Pillow's limit, which is not below ours
            raise ImageTooLargeError(
                f"image has a frame of too many pixels; max_pixels is {limits.max_pixels:,}"
            ) from error


def stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return (width, height) as in the file; Pillow's size of a TIFF is that of the upright image."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return image.size


def stored_orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation (1 to 8) still to be applied to a loaded image.

    A PNG may tell it behind its pixels. A TIFF has none left: Pillow turns it upright as it loads it.
    """
    return exif_orientation(image.info.get("exif", b""))


def load_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Decode the whole image (of several, the first), and make it RGB.

    Transparency is dropped, and the colours below it stay. 16 bits lose their lower 8.

    Raises:
        UnsupportedImageError: The samples are 32-bit integers or floats: nothing says which of them is white.
    """
    image.load()
    # Which changes no pixel of `convert("RGB")`: it would only warn.
    image.info.pop("transparency", None)
    if image.mode in ("I", "F"):
        width, height = stored_size(image)
        raise UnsupportedImageError(
            "samples must be integers of 1 to 16 bits, got 32-bit ones", width=width, height=height
        )
    if image.mode.startswith("I;16"):  # `convert` would make white of all that is above 255
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
    """Turn whatever a decoder raises within into UndecodableImageError, except our own errors."""
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
    """Make a library's message fit for a row: the same on every run, printable, short."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", text)
    text = " ".join(text.split()).encode("unicode_escape").decode()
    return text if len(text) <= _MAX_REASON_CHARS else text[: _MAX_REASON_CHARS - 3] + "..."


@functools.cache
def _configure_pillow() -> None:
    """Silence, once per process, what Pillow says of damaged metadata.

    `warnings.catch_warnings` around each call would not be thread-safe.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


_limit_lock = threading.Lock()


def _raise_pillow_limit(max_pixels: int) -> None:
    """Keep Pillow's own limit, 89 megapixels, from refusing what `max_pixels` allows.

    It is global, and some plugins check it while they load. So it is raised where it is the lower one, and never
    lowered: threads with different limits cannot disturb each other, since ours is checked first.
    """
    if Image.MAX_IMAGE_PIXELS is None or max_pixels <= Image.MAX_IMAGE_PIXELS:
        return
    with _limit_lock:
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
