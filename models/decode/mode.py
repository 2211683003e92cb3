"""The ways to decode: by itself, so that a settings class loads neither NumPy nor Pillow to name them."""

from __future__ import annotations

from enum import StrEnum


class DecodeMode(StrEnum):
    """How pixels are computed: as fast as possible, or as the model's reference does."""

    FAST = "fast"
    EXACT = "exact"
