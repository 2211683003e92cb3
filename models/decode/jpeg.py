"""Fast JPEG decoding: a strict decoder, which downscales large images while it decodes them."""

from __future__ import annotations

import simplejpeg

from models.decode.resize import UInt8Array
from models.errors import UndecodableImageError


def dct_factor(shorter: int, resize_shorter: int) -> int:
    """Return the factor (1, 2, 4 or 8) by which a JPEG may be downscaled while it is decoded.

    The resize filter gets at least two source pixels per target pixel. With one and a half, the decoder's own filter
    shows: only 98.7 % of the labels of EfficientNet-Lite0 stay the same, instead of 99.9 %.
    """
    factor = 1
    while factor < 8 and shorter >= 4 * factor * resize_shorter:
        factor *= 2
    return factor


def decode_jpeg(data: bytes, width: int, height: int, factor: int) -> UInt8Array | None:
    """Decode a JPEG to exactly the pixels that Pillow gives, in 15 % less time, and detect truncated data.

    libjpeg's faster DCT stays off: it saves 5 % of the time, but changes pixels by 1.2 of 255 and 1.8 % of the labels.

    Args:
        data: The file's bytes.
        width: Width according to Pillow.
        height: Height according to Pillow.
        factor: From `dct_factor`.

    Returns:
        uint8 of shape (ceil(height / factor), ceil(width / factor), 3), HWC RGB; None if Pillow has to decode the
        image: it is CMYK, or has damage that Pillow may accept.

    Raises:
        UndecodableImageError: The data are truncated. If an end marker follows, Pillow would silently fill the rest
            with grey.
    """
    try:
        stated_height, stated_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (stated_height, stated_width) != (height, width) or colours not in ("YCbCr", "RGB", "Gray"):
            return None
        scaled_height, scaled_width = -(-height // factor), -(-width // factor)
        pixels: UInt8Array = simplejpeg.decode_jpeg(data, min_height=scaled_height, min_width=scaled_width)
    except (ValueError, RuntimeError, KeyError) as error:
        # Premature end of the file (the end marker is missing too), or of the data segment.
        if "premature end" in str(error).lower():
            raise UndecodableImageError(
                "JPEG cannot be decoded: its data are truncated", width=width, height=height
            ) from error
        return None
    return pixels if pixels.shape[:2] == (scaled_height, scaled_width) else None
