"""What makes decoding a JPEG fast: a strict decoder, and large ones reduced as they are decoded."""

from __future__ import annotations

import simplejpeg

from models.decode.resize import UInt8Array
from models.errors import UndecodableImageError


def dct_factor(shorter: int, resize_shorter: int) -> int:
    """Return by how much, 1, 2, 4 or 8, a JPEG may be reduced while it is decoded.

    At least two pixels per pixel are left to the filter. With only one and a half, the reduction's own filter shows:
    98.7 % of the labels of EfficientNet-Lite0 stay the same, instead of 99.9 %.
    """
    factor = 1
    while factor < 8 and shorter >= 4 * factor * resize_shorter:
        factor *= 2
    return factor


def decode_jpeg(data: bytes, width: int, height: int, factor: int) -> UInt8Array | None:
    """Decode a JPEG to exactly what Pillow decodes it to, in 15 % less time, and noticing damage.

    libjpeg's faster DCT is left off: for 5 % of the time it changes pixels by 1.2 of 255, and 1.8 % of the labels.

    Args:
        data: The file.
        width: According to Pillow.
        height: According to Pillow.
        factor: From `dct_factor`.

    Returns:
        uint8 of shape (ceil(height / factor), ceil(width / factor), 3), HWC RGB; or None if Pillow is to decode it:
        CMYK, or damage on which Pillow is to judge.

    Raises:
        UndecodableImageError: The data end before the image does. Where an end marker follows, Pillow would say
            nothing and fill the rest with grey.
    """
    try:
        stated_height, stated_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (stated_height, stated_width) != (height, width) or colours not in ("YCbCr", "RGB", "Gray"):
            return None
        scaled_height, scaled_width = -(-height // factor), -(-width // factor)
        pixels: UInt8Array = simplejpeg.decode_jpeg(data, min_height=scaled_height, min_width=scaled_width)
    except (ValueError, RuntimeError, KeyError) as error:
        # Of the file, where the end marker is missing too; or of the data segment.
        if "premature end" in str(error).lower():
            raise UndecodableImageError(
                "JPEG cannot be decoded: its data end early", width=width, height=height
            ) from error
        return None
    return pixels if pixels.shape[:2] == (scaled_height, scaled_width) else None
