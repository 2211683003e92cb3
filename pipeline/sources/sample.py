"""What readers of every format return: samples, notes on what was lost, and keys that are unique in their shard."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Any

from models.decode.decode import ImageLimits

# Maximum bytes of a key. Linux accepts paths of 4 KiB.
MAX_KEY_BYTES = 4096
# Losses of one shard that a commit record describes; the rest are counted.
MAX_LOSSES = 3


@dataclass(slots=True)
class Sample:
    """One image to label.

    Attributes:
        shard: The shard's URI relative to SOURCE.
        key: Unique within the shard.
        data: The encoded image, or None where there is none to decode; then status and error say why.
        status: Set if it is clear before decoding that the image cannot be labelled.
        error: What is wrong with it, if `status` is set.
        beside: The sample's other small members by extension, if requested.
        carried: Values of the columns that are copied through.
        carried_bytes: Approximate size of these values in bytes.
    """

    shard: str
    key: str
    data: bytes | None
    status: str | None = None
    error: str | None = None
    beside: dict[str, bytes] = field(default_factory=dict)
    carried: tuple[Any, ...] = ()
    carried_bytes: int = 0


@dataclass(slots=True)
class ShardNotes:
    """Notes from reading a shard.

    Attributes:
        skipped: Number of members that are not files or have no key, by kind.
        bytes_read: How much of the shard was read.
        losses: The first few losses, in a sentence each.
        more_losses: How many more losses there were.
    """

    skipped: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    losses: list[str] = field(default_factory=list)
    more_losses: int = 0

    @property
    def missing(self) -> str | None:
        """What was lost, in one line; None for a complete shard."""
        if not self.losses:
            return None
        more = f"; and {self.more_losses} more" if self.more_losses else ""
        return "; ".join(self.losses) + more

    def skip(self, kind: str) -> None:
        """Count a member that gives no row."""
        self.skipped[kind] = self.skipped.get(kind, 0) + 1

    def lose(self, what: str) -> None:
        """Note a loss."""
        if len(self.losses) < MAX_LOSSES:
            self.losses.append(what)
        else:
            self.more_losses += 1


def too_large_error(size: int, limits: ImageLimits) -> str:
    """Say that an image has too many bytes, alike for all formats."""
    return f"{size} bytes are more than the {limits.max_image_bytes} allowed"


def cut_key(key: str, size: int | None = None) -> tuple[str, str | None]:
    """Return a key of at most MAX_KEY_BYTES, and an error if it was longer; the status is then `unsupported`.

    Args:
        key: The key, or its beginning.
        size: Bytes of the whole key, if `key` is its beginning.
    """
    if len(key) <= MAX_KEY_BYTES // 4 and size is None:  # a character has 4 bytes at most
        return key, None
    encoded = key.encode()
    size = max(len(encoded), size or 0)
    if size <= MAX_KEY_BYTES:
        return key, None
    error = f"the key has {size} bytes, more than the {MAX_KEY_BYTES} allowed; it is cut"
    return encoded[:MAX_KEY_BYTES].decode("utf-8", "ignore"), error


class UniqueKeys:
    """Number the repeated keys of a shard, so that each row can be told from the others.

    Memory: 16 to 32 bytes per key, whatever its length: a 50 GB tar of small images holds millions. Only hashes are
    kept; two keys with the same hash (one in 10^7 shards of a million keys) cost a needless number, and no row.
    """

    # Keys repeated so often get their next number from a dictionary, not by trying all numbers before it.
    _OFTEN = 8

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0
        self._next: dict[int, int] = {}  # by the key's hash

    def unique(self, key: str) -> str:
        """Return a new key as it is, a repeated one with the first free number: `key#2`."""
        if self._add(key):
            return key
        number = self._next.get(_hash(key), 2)
        while not self._add(candidate := f"{key}#{number}"):
            number += 1
        if number >= self._OFTEN:
            self._next[_hash(key)] = number + 1
        return candidate

    def __contains__(self, key: str) -> bool:
        value = _hash(key)
        return self._slots[self._find(value)] == value

    def _add(self, key: str) -> bool:
        value = _hash(key)
        place = self._find(value)
        if self._slots[place] == value:
            return False
        self._slots[place] = value
        self._count += 1
        if 2 * self._count > len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for kept in old:
                if kept:
                    self._slots[self._find(kept)] = kept
        return True

    def _find(self, value: int) -> int:
        """Return the slot that holds a hash, or the free one where it belongs."""
        slots = self._slots
        mask = len(slots) - 1
        place = value & mask
        while slots[place] not in (0, value):
            place = (place + 1) & mask
        return place


def _hash(key: str) -> int:
    # Python's own hash differs between processes, and the same shard must give the same keys on every run.
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") or 1
