"""Decode an image to the uint8 crop that a model takes, by the model's reference preprocessing or faster.

An image that cannot be labelled raises one of four errors, the same in both modes:

* empty: it has no bytes.
* too_large: it has more bytes or pixels than `ImageLimits`; the header tells this before a pixel is decoded.
* unsupported: the content, whatever the file's name, is in another format that is recognised (AVIF, HEIF, JPEG 2000,
  SVG, ...), or its samples are 32-bit integers or floats.
* undecodable: the format is unknown; or it is JPEG, PNG, WebP, GIF, BMP or TIFF, but broken. **An image with truncated
  pixel data is undecodable, including a JPEG without its end marker; Pillow decides about other damage.** So no image
  is half grey, but some wrong pixels pass, as they do in a browser. A progressive JPEG that ends after one of its
  scans is complete, only less sharp.

Garbage after the end is ignored. EXIF orientation is applied: an image is labelled as a viewer shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from models.decode.bare import bare_image
from models.decode.headers import ImageFormat, ImageLimits, check_header, check_scans, sniff_format
from models.decode.jpeg import dct_factor, decode_jpeg
from models.decode.mode import DecodeMode
from models.decode.pillow import load_rgb, open_image, stored_orientation, stored_size, undecodable, upright
from models.decode.resize import RESAMPLING, UInt8Array, crop_axes, resize_crop, resize_crop_simd
from models.spec import Preprocessing

__all__ = ["DecodeMode", "DecodedImage", "ImageLimits", "decode_image"]

# The reference resizes a 1 x 20000 image with a shorter side of 256 to 1.3 gigapixels, and keeps 224 x 224 of them.
# Above 16 megapixels (64 MB; at 256, one side 256 times the other) `exact` too computes only the crop.
MAX_RESIZED_PIXELS = 2**24


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image, cropped for a model.

    Attributes:
        pixels: uint8 of shape (crop, crop, 3), HWC RGB.
        width: Width of the image as stored, before it was turned upright, in pixels.
        height: Height of the image as stored, before it was turned upright, in pixels.
    """

    pixels: UInt8Array
    width: int
    height: int


def decode_image(
    data: bytes | memoryview,
    preprocessing: Preprocessing,
    mode: DecodeMode,
    limits: ImageLimits,
    *,
    out: UInt8Array | None = None,
) -> DecodedImage:
    """Decode, turn upright, resize and crop one image. Thread-safe; works without the GIL.

    Args:
        data: The encoded image.
        preprocessing: Geometry and filter.
        mode: `exact` resizes the whole image with Pillow: pixel for pixel the reference. `fast` computes only the crop,
            and downscales a large JPEG while it is decoded; see `models.decode.jpeg` and `models.decode.resize`.
        limits: Largest size in bytes and pixels. Decoding takes at most 8 bytes of memory per pixel, 16 for a WebP.
        out: uint8 of shape (crop, crop, 3), such as a row of a batch; the crop is written into it if given.

    Raises:
        EmptyImageError: The image has no bytes.
        ImageTooLargeError: It has too many bytes, or too many pixels; then the error has width and height.
        UnsupportedImageError: It has another format or kind of samples.
        UndecodableImageError: It is broken; the error has width and height if the header could be read.
    """
    limits.check_bytes(len(data))
    data = bytes(data)
    image_format = sniff_format(data)
    data = bare_image(image_format, data)
    check_header(image_format, data, limits)
    image = open_image(image_format, data, limits)
    width, height = stored_size(image)
    limits.check_pixels(width, height)

    if image_format is ImageFormat.JPEG:
        check_scans(data, width, height, limits)
    with undecodable(image_format, width, height):
        decode = _decode_fast if mode is DecodeMode.FAST else _decode_exact
        cropped = decode(image, data if image_format is ImageFormat.JPEG else None, preprocessing)
    if out is None:
        out = np.empty(cropped.shape, np.uint8)
    out[...] = cropped
    return DecodedImage(out, width, height)


def _decode_exact(image: ImageFile.ImageFile, jpeg: bytes | None, preprocessing: Preprocessing) -> UInt8Array:
    """Decode, turn upright, resize and crop, each as the reference does.

    Returns:
        uint8 of shape (crop, crop, 3), HWC RGB.
    """
    pixels = None if jpeg is None else decode_jpeg(jpeg, image.width, image.height, 1)
    rgb = load_rgb(image) if pixels is None else Image.fromarray(pixels)
    del pixels  # saves 3 of 11 bytes per pixel while the image is turned
    rgb = upright(rgb, stored_orientation(image))
    x, y = crop_axes(rgb.width, rgb.height, 1, preprocessing)
    if x.resized * y.resized > MAX_RESIZED_PIXELS:
        return np.asarray(resize_crop(rgb, x, y, preprocessing.interpolation))
    resized = rgb.resize((x.resized, y.resized), RESAMPLING[preprocessing.interpolation])
    return np.asarray(resized)[y.start : y.start + y.crop, x.start : x.start + x.crop]


def _decode_fast(image: ImageFile.ImageFile, jpeg: bytes | None, preprocessing: Preprocessing) -> UInt8Array:
    """Decode, compute only the crop from the image as stored, and turn it upright.

    Returns:
        uint8 of shape (crop, crop, 3), HWC RGB.
    """
    width, height = image.size
    factor = 1 if jpeg is None else dct_factor(min(width, height), preprocessing.resize_shorter)
    pixels = None if jpeg is None else decode_jpeg(jpeg, width, height, factor)
    source = load_rgb(image) if pixels is None else pixels
    orientation = stored_orientation(image)  # after the pixels, behind which a PNG may store it
    x, y = crop_axes(width, height, orientation, preprocessing)
    if isinstance(source, Image.Image):
        return np.asarray(upright(resize_crop(source, x, y, preprocessing.interpolation), orientation))
    cropped = resize_crop_simd(source, x, y, preprocessing.interpolation, factor=factor)
    return cropped if orientation == 1 else np.asarray(upright(Image.fromarray(cropped), orientation))
