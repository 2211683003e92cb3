"""Settings of glibc's malloc: keep freed memory between images, give it back after a model was loaded."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest value that malloc accepts. Larger blocks (images of 11 megapixels or more) are given back at once.
_LARGEST_KEPT = 32 * 2**20
_KEPT = 64 * 2**20


def tune_malloc() -> bool:
    """Let this process keep up to 64 MB of freed memory for the next image; return whether that worked.

    By default glibc gives the memory of each batch back to the system and then requests it again: 30 page faults an
    image, 4 % of the decoding time. With another C library this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT))


def give_back_freed_memory() -> bool:
    """Give all freed memory back to the system; return whether there was any.

    While a model is loaded it takes several times its size. malloc would keep the freed pieces for good: 90 MB for
    ResNet18's float32 session. With another C library this does nothing.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
