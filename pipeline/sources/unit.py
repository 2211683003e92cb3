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
        etag: ETag of the whole shard.
        start: First row group (Parquet), row (a manifest) or byte (a tar) that belongs to the unit.
        stop: One past the last; -1 for all.
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
        """The whole shard as it was planned."""
        return FileStat(self.shard, self.size, self.etag)

    @property
    def is_tar(self) -> bool:
        """Whether it is an uncompressed tar, or a part of one."""
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
        """Bytes of its shards and pieces of tars; for row groups, whose bytes no plan holds, those of the file."""
        return sum(p.stop - p.start if p.stop >= 0 and p.is_tar else p.size for p in self.slices)

    @property
    def own_bytes(self) -> int:
        """Bytes of its shards, so that sums are right: a shard in several units counts in the first only."""
        return sum(piece.size for piece in self.slices if piece.start == 0)

    def id(self, rows_id: str) -> str:
        """Return a hash of its slices and of the settings that its rows depend on.

        ETags are left out: a copy on a disk and one in a bucket have the same id.
        """
        slices = [replace(piece, etag="") for piece in self.slices]
        return sha256(json.dumps([rows_id, [astuple(piece) for piece in slices]]).encode()).hexdigest()[:32]


def part_name(unit: int) -> str:
    """Return the name of a unit's Parquet file, the same on every run of a plan."""
    return f"part-{unit:05d}.parquet"


def part_number(name: str) -> int | None:
    """Return the unit whose Parquet file has this name, or None: `part-0.parquet` belongs to no unit."""
    number = name.removeprefix("part-").removesuffix(".parquet")
    # ASCII digits only, and few: `int` accepts those of other scripts too, and refuses thousands.
    unit = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else None
    return unit if unit is not None and part_name(unit) == name else None
