"""The geometry of a resize and centre crop, and a resize that computes only the crop, by the reference's filter.

The reference resizes the whole image and discards a third of it. Here only the crop is computed, by the same filter
from the part of the image that it needs: by Pillow, or by fast_image_resize (package `cykooz.resizer`, where it has a
wheel), whose SIMD convolution takes a fifth of the time. Its coefficients have fewer bits than Pillow's: three values
in a thousand differ by 1 of 255.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.spec import Fit, Interpolation, Preprocessing

try:
    import cykooz_resizer as fir
except ImportError:  # no wheel for this machine
    fir = None

UInt8Array = npt.NDArray[np.uint8]

RESAMPLING = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.LANCZOS: Image.Resampling.LANCZOS,
}

# Reach of Pillow's filters: source pixels on either side of a pixel's centre, at full resolution.
_SUPPORT = {Interpolation.BILINEAR: 1, Interpolation.BICUBIC: 2, Interpolation.LANCZOS: 3}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a resize and centre crop.

    Attributes:
        side: Length of the source, pixels.
        resized: Length after a resize of the whole image, pixels.
        start: First resized pixel that is kept.
        crop: Number of pixels that are kept.
    """

    side: int
    resized: int
    start: int
    crop: int

    def mirrored(self) -> Axis:
        """Return the same crop, counted from the other end."""
        return Axis(self.side, self.resized, self.resized - self.start - self.crop, self.crop)

    def box(self, factor: int, support: int) -> tuple[float, float, int, int]:
        """Locate the crop in a source that was downscaled by a factor.

        Returns:
            (begin, end) of the crop, then (begin, end) of the whole pixels that the filter reads, all in source pixels.
        """
        scale = self.side / factor / self.resized
        begin, end = self.start * scale, (self.start + self.crop) * scale
        reach = support * max(scale, 1.0) + 1
        return begin, end, max(0, math.floor(begin - reach)), min(-(-self.side // factor), math.ceil(end + reach))


def crop_axes(width: int, height: int, orientation: int, preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    """Map the resize and the crop to the image as stored, so that only the crop has to be turned upright.

    Args:
        width: Width of the image as stored, pixels.
        height: Height of the image as stored, pixels.
        orientation: The EXIF orientation, 1 to 8.
        preprocessing: Defines the geometry, for the upright image.

    Returns:
        (x, y), the axes of the image as stored.
    """
    transposed = orientation >= 5
    ratio = preprocessing.resize_shorter / min(width, height)
    crop = preprocessing.crop

    def axis(side: int) -> Axis:
        resized = preprocessing.resize_shorter if preprocessing.fit is Fit.STRETCH else round(side * ratio)
        return Axis(side, resized, resized // 2 - crop // 2, crop)

    x, y = (axis(height), axis(width)) if transposed else (axis(width), axis(height))
    if orientation in (2, 3, 6, 7):
        x = x.mirrored()
    if orientation in (3, 4, 7, 8):
        y = y.mirrored()
    return (y, x) if transposed else (x, y)


def resize_crop(
    source: Image.Image | UInt8Array, x: Axis, y: Axis, interpolation: Interpolation, *, factor: int = 1
) -> Image.Image:
    """Resize with Pillow, computing only the crop.

    Args:
        source: An RGB image of Pillow, or uint8 of shape (height, width, 3), downscaled by `factor`.
        x: Horizontal axis of the source before it was downscaled.
        y: Vertical axis of the source before it was downscaled.
        interpolation: The filter.
        factor: From `dct_factor`.

    Returns:
        An image of x.crop by y.crop pixels.
    """
    support = _SUPPORT[interpolation]
    left, right, first_column, last_column = x.box(factor, support)
    top, bottom, first_row, last_row = y.box(factor, support)
    # For a portrait image with a box, Pillow >= 13 would resize columns before rows, the other way round than for the
    # whole image, and round differently. For the part that is cut out first, it does not.
    if isinstance(source, Image.Image):
        part = source.crop((first_column, first_row, last_column, last_row))
    else:
        part = Image.fromarray(source[first_row:last_row, first_column:last_column])
    box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
    return part.resize((x.crop, y.crop), RESAMPLING[interpolation], box=box)


def resize_crop_simd(
    pixels: UInt8Array, x: Axis, y: Axis, interpolation: Interpolation, *, factor: int = 1
) -> UInt8Array:
    """Resize with SIMD, computing only the crop; falls back to `resize_crop` if the library is not installed.

    Works in two steps, rows first, as Pillow does. In one step the library would resize the columns first, and clip
    overshoots at another stage (pixels then differ by up to 14 of 255).

    Args:
        pixels: uint8 of shape (height, width, 3), RGB, downscaled by `factor`.
        x: Horizontal axis of the source before it was downscaled.
        y: Vertical axis of the source before it was downscaled.
        interpolation: The filter.
        factor: From `dct_factor`.

    Returns:
        uint8 of shape (y.crop, x.crop, 3), HWC RGB.
    """
    if fir is None:
        return np.asarray(resize_crop(pixels, x, y, interpolation, factor=factor))
    support = _SUPPORT[interpolation]
    left, right, first_column, last_column = x.box(factor, support)
    top, bottom, first_row, last_row = y.box(factor, support)
    width, height = last_column - first_column, last_row - first_row
    left, top = left - first_column, top - first_row
    # The library refuses a box that extends beyond the edge by a rounding error.
    right, bottom = min(right - first_column, width), min(bottom - first_row, height)

    resizer, filters = _simd()
    rgb = fir.PixelType.U8x3
    part = fir.ImageData(width, height, rgb, pixels[first_row:last_row, first_column:last_column].tobytes())
    rows = fir.ImageData(x.crop, height, rgb)
    crop = fir.ImageData(x.crop, y.crop, rgb)
    for source, target, box in (
        (part, rows, fir.CropBox(left, 0, right - left, height)),
        (rows, crop, fir.CropBox(0, top, x.crop, bottom - top)),
    ):
        resizer.resize(source, target, fir.ResizeOptions(filters[interpolation], crop_box=box))
    return np.frombuffer(crop.get_buffer(), np.uint8).reshape(y.crop, x.crop, 3)


_local = threading.local()


def _simd() -> tuple[fir.Resizer, dict[Interpolation, fir.ResizeAlg]]:
    """Return this thread's resizer, which locks itself while it works, and its equivalents of Pillow's filters."""
    if not hasattr(_local, "resizer"):
        _local.resizer = fir.Resizer()
        _local.filters = {
            interpolation: fir.ResizeAlg.convolution(kind)
            for interpolation, kind in (
                (Interpolation.BILINEAR, fir.FilterType.bilinear),
                (Interpolation.BICUBIC, fir.FilterType.catmull_rom),
                (Interpolation.LANCZOS, fir.FilterType.lanczos3),
            )
        }
    return _local.resizer, _local.filters
