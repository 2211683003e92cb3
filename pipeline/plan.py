"""Divide SOURCE into work units, once, and keep that plan: the same unit has the same name and rows on every run.

`DEST/_shardlabel/plan/` holds segments of units as Parquet and, written last, `plan.json`: a plan without it was never
finished and is made anew. Planning streams: neither the shards nor the units are ever all in memory.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ConfigError, SourceError
from pipeline.sources import InputFile
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

STATE_FOLDER = "_shardlabel"
PLAN_FOLDER = f"{STATE_FOLDER}/plan"
PLAN_FILE = f"{PLAN_FOLDER}/plan.json"
PLAN_VERSION = 1
# Up to here every shard is a unit of its own. Beyond, small shards share one up to UNIT_BYTES, so that ten million of
# them become some hundred thousand units, files and commit records. By position alone: no total has to be known.
SINGLE_SHARD_UNITS = 10_000
UNIT_BYTES = 256 * 2**20
UNIT_IMAGES = 1_000
SEGMENT_ROWS = 100_000

_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("shard", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("limit", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A shard, or a part of it.

    Attributes:
        shard: URI relative to the source's base.
        size: Bytes of the whole shard.
        etag: Of the whole shard.
        start: First row group (Parquet) that belongs to the unit.
        stop: One behind the last; -1 for all.
        limit: How many samples of it are taken, with --limit; -1 for all.
    """

    shard: str
    size: int
    etag: str
    start: int = 0
    stop: int = -1
    limit: int = -1


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
        """Bytes of its shards."""
        return sum(piece.size for piece in self.slices)


def part_name(unit: int) -> str:
    """Return the name of a unit's Parquet file, the same on every run of a plan."""
    return f"part-{unit:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Plan:
    """The head of a plan; its units are read from storage as they are needed.

    Attributes:
        settings: What must be the same for a resume, by name.
        units: How many units.
        shards: How many slices of shards.
        bytes: Of all input.
        segments: Names of the segment files, in order of units.
    """

    settings: dict[str, Any]
    units: int
    shards: int
    bytes: int
    segments: list[str] = field(default_factory=list)
    version: int = PLAN_VERSION


def cut_units(slices: Iterable[Slice], *, images: bool = False) -> Iterator[Unit]:
    """Group slices into units by a rule that looks at nothing but what came before.

    Args:
        slices: In the source's order.
        images: Whether each slice is one loose image; then a unit is up to UNIT_IMAGES of them.
    """
    number = 0
    group: list[Slice] = []
    size = 0
    for piece in slices:
        alone = not images and number < SINGLE_SHARD_UNITS
        full = len(group) >= UNIT_IMAGES if images else size + piece.size > UNIT_BYTES
        if group and (alone or full):
            yield Unit(number, tuple(group))
            number += 1
            group, size = [], 0
        group.append(piece)
        size += piece.size
    if group:
        yield Unit(number, tuple(group))


def write_plan(dest: Storage, units: Iterable[Unit], settings: dict[str, Any]) -> Plan:
    """Write segments as units come, and plan.json last.

    Raises:
        StorageError: DEST cannot be written.
    """
    segments: list[str] = []
    counts = {"units": 0, "shards": 0, "bytes": 0}
    rows: list[tuple[Any, ...]] = []
    for unit in units:
        counts["units"] += 1
        for piece in unit.slices:
            counts["shards"] += 1
            # The size is the whole file's: of a file in several slices only the first counts.
            counts["bytes"] += piece.size if piece.start == 0 else 0
            rows.append((unit.number, piece.shard, piece.size, piece.etag, piece.start, piece.stop, piece.limit))
        if len(rows) >= SEGMENT_ROWS:
            segments.append(_write_segment(dest, len(segments), rows))
            rows = []
    if rows:
        segments.append(_write_segment(dest, len(segments), rows))
    plan = Plan(settings=settings, segments=segments, **counts)
    dest.write_bytes(PLAN_FILE, json.dumps(asdict(plan), indent=1).encode())
    return plan


def read_plan(dest: Storage) -> Plan | None:
    """Return DEST's plan, or None where there is none.

    Raises:
        ConfigError: It is damaged, or of a version that this program does not know.
    """
    if dest.stat(PLAN_FILE) is None:
        return None
    try:
        values = json.loads(dest.read_bytes(PLAN_FILE))
        if values["version"] != PLAN_VERSION:
            raise ConfigError(
                f"{dest.describe()} was begun by another version of shardlabel (plan version {values['version']}, "
                f"this one knows {PLAN_VERSION}); finish it there, or start anew with --overwrite"
            )
        return Plan(**values)
    except (ValueError, TypeError, KeyError) as err:
        raise ConfigError(
            f"{dest.describe(PLAN_FILE)} is damaged ({err}); start anew with --overwrite or another --output"
        ) from err


def iter_units(dest: Storage, plan: Plan) -> Iterator[Unit]:
    """Yield the plan's units in order; one segment is in memory at a time."""
    group: list[Slice] = []
    current = -1
    for name in plan.segments:
        for number, *values in _read_segment(dest, name):
            if number != current and group:
                yield Unit(current, tuple(group))
                group = []
            current = number
            group.append(Slice(*values))
    if group:
        yield Unit(current, tuple(group))


def check_settings(plan: Plan, settings: dict[str, Any], dest: Storage) -> None:
    """Refuse to go on with settings that would give other rows.

    Raises:
        ConfigError: Names the first difference.
    """
    for name, wanted in settings.items():
        have = plan.settings.get(name)
        if have != wanted:
            raise ConfigError(
                f"{dest.describe()} was begun with {name} {_short(have)}, and now it is {_short(wanted)}; "
                f"give the same {name}, another --output, or --overwrite"
            )


def check_source(dest: Storage, plan: Plan, slices: Iterable[Slice], *, limited: bool = False) -> None:
    """Compare the source as it is now with the source that was planned, one shard at a time.

    Args:
        dest: Holds the plan.
        plan: Its head.
        slices: What SOURCE is now.
        limited: Whether the plan took only the first images of SOURCE, so that more shards may follow.

    Raises:
        SourceError: A shard changed, went away or came; the message names the first.
    """
    planned = (piece for unit in iter_units(dest, plan) for piece in unit.slices)
    advice = "label it into another --output, or start anew with --overwrite"
    current = iter(slices)
    for old in planned:
        new = next(current, None)
        if new is None or new.shard != old.shard:
            found = "nothing" if new is None else new.shard
            raise SourceError(f"SOURCE is not what was planned: expected shard {old.shard}, found {found}; {advice}")
        # A listing may tell no ETag: then the size has to do.
        if new.size != old.size or (new.etag and old.etag and new.etag != old.etag):
            what = f"its size was {old.size} bytes and is {new.size}" if new.size != old.size else "it was written anew"
            raise SourceError(f"shard {old.shard} has changed since the run began: {what}; {advice}")
        if (new.start, new.stop) != (old.start, old.stop):
            raise SourceError(f"shard {old.shard} has changed since the run began: it divides differently; {advice}")
    extra = None if limited else next(current, None)
    if extra is not None:
        raise SourceError(f"SOURCE is not what was planned: shard {extra.shard} is new; {advice}")


def limited(slices: Iterable[Slice], images: int, count: Callable[[Slice, int], int]) -> Iterator[Slice]:
    """Yield the slices that hold the first so many images, the last one cut.

    Args:
        slices: In the source's order.
        images: How many in all.
        count: Counts a slice's samples, up to a number: reads it, for lack of an index.
    """
    for piece in slices:
        found = count(piece, images)
        yield replace(piece, limit=found if found == images else -1)
        images -= found
        if images <= 0:
            return


def whole_shards(files: Iterable[InputFile]) -> Iterator[Slice]:
    """Turn each shard into one slice."""
    return (Slice(file.shard, file.size, file.etag) for file in files)


def _write_segment(dest: Storage, index: int, rows: list[tuple[Any, ...]]) -> str:
    columns = list(zip(*rows, strict=True))
    table = pa.table([pa.array(c, type=f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = f"units-{index:05d}.parquet"
    dest.write_bytes(f"{PLAN_FOLDER}/{name}", buffer.getvalue())
    return name


def _read_segment(dest: Storage, name: str) -> Iterator[tuple[Any, ...]]:
    file = pq.ParquetFile(io.BytesIO(dest.read_bytes(f"{PLAN_FOLDER}/{name}")))
    for batch in file.iter_batches(batch_size=10_000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}..."
