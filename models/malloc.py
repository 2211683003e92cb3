"""What glibc's malloc keeps: memory between images, and none that loading a model took."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that malloc takes; what is larger, of an image of 11 megapixels or more, is given back at once.
_LARGEST_KEPT = 32 * 2**20
_KEPT = 64 * 2**20


def tune_malloc() -> bool:
    """Have this process keep up to 64 MB that it frees, and use them for the next image; return whether it does.

    By default glibc gives each batch of pixels back to the system, and takes it anew: 30 page faults an image, 4 % of the
    time of decoding. Of another C library nothing is asked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT))


def give_back_freed_memory() -> bool:
    """Give the system all memory that is free; return whether there was any.

    Loading a model takes several times its size for a while, of which malloc would keep the pieces for good: 90 MB of
    ResNet18's float32 session. Of another C library nothing is asked.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
