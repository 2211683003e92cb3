"""The decode modes, in a module of their own, so that settings classes load neither NumPy nor Pillow."""

from __future__ import annotations

from enum import StrEnum


class DecodeMode(StrEnum):
    """How pixels are computed: as fast as possible, or as the model's reference does."""

    FAST = "fast"
    EXACT = "exact"
