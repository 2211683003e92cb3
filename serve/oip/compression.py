"""Packed answers. Requests are unpacked where bodies are read, in `serve.http.bodies`."""

from __future__ import annotations

import zlib

# zlib's window bits: 15 is a zlib stream, which HTTP calls deflate; 16 more, and it is gzip.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
# JPEG does not shrink, and labels are short: the least work.
_LEVEL = 1


def choose_encoding(accepted: str) -> str | None:
    """Choose how an answer is packed: gzip before deflate, or not at all.

    Args:
        accepted: The Accept-Encoding header.

    Returns:
        "gzip", "deflate" or None.
    """
    weights = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        weights[name.strip()] = _weight(parameter)
    for name in ("gzip", "deflate"):
        if weights.get(name, 0.0) > 0.0:
            return name
    return None


def compress(body: bytes, encoding: str) -> bytes:
    """Pack an answer; `encoding` as `choose_encoding` gives it."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return packer.compress(body) + packer.flush()


def _weight(parameter: str) -> float:
    key, _, value = parameter.strip().partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
