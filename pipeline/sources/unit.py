"""Work units: what is read, labelled and committed together."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace
from hashlib import sha256

from pipeline.storage.location import FileStat


@dataclass(frozen=True, slots=True)
class Slice:
    """A shard, or a part of it.

    Attributes:
        shard: URI relative to the source's base.
        size: Bytes of the whole shard.
        etag: Of the whole shard.
        start: First row group (Parquet), row (a manifest) or byte (a tar) that belongs to the unit.
        stop: One behind the last; -1 for all.
        limit: How many samples of it are taken, with --limit; -1 for all.
    """

    shard: str
    size: int
    etag: str
    start: int = 0
    stop: int = -1
    limit: int = -1

    @property
    def planned(self) -> FileStat:
        """What the whole shard was when it was planned."""
        return FileStat(self.shard, self.size, self.etag)

    @property
    def is_tar(self) -> bool:
        """Whether it is a tar, or a part of one, and no gzip of it."""
        return self.shard.lower().endswith(".tar")


@dataclass(frozen=True, slots=True)
class Unit:
    """What is committed together: one Parquet file, one commit record."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def part(self) -> str:
        """Name of its Parquet file."""
        return part_name(self.number)

    @property
    def size(self) -> int:
        """Bytes of its shards, and of its pieces of tars; of row groups, whose bytes no plan tells, those of the file."""
        return sum(p.stop - p.start if p.stop >= 0 and p.is_tar else p.size for p in self.slices)

    @property
    def own_bytes(self) -> int:
        """Bytes of its shards, so that sums are right: a shard in several units counts in the first alone."""
        return sum(piece.size for piece in self.slices if piece.start == 0)

    def id(self, rows_id: str) -> str:
        """Return a hash of its slices and of the settings that its rows depend on.

        ETags are left out: what lies on a disk and in a bucket has the same id.
        """
        slices = [replace(piece, etag="") for piece in self.slices]
        return sha256(json.dumps([rows_id, [astuple(piece) for piece in slices]]).encode()).hexdigest()[:32]


def part_name(unit: int) -> str:
    """Return the name of a unit's Parquet file, the same on every run of a plan."""
    return f"part-{unit:05d}.parquet"


def part_number(name: str) -> int | None:
    """Return the unit whose Parquet file is called so, or None: `part-0.parquet` is no unit's."""
    number = name.removeprefix("part-").removesuffix(".parquet")
    # Of ASCII digits, and few: `int` takes other scripts' too, and refuses thousands.
    unit = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else None
    return unit if unit is not None and part_name(unit) == name else None
