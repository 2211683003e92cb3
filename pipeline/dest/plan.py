"""Divide SOURCE into work units once, and keep that plan: a unit has the same name and rows on every run.

`DEST/_shardlabel/plan/` holds segments of units as Parquet and, written last, `plan.json`: a plan without it was never
finished and is made again. Planning streams: neither the shards nor the units are ever all in memory. A plan grows by
further segments and one write of plan.json, so a kill leaves either the old plan or the new one.
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ConfigError, SourceError, StorageError
from pipeline.sources.unit import Slice, Unit, part_name
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

logger = logging.getLogger(__name__)

STATE_FOLDER = "_shardlabel"
SUMMARY_FILE = f"{STATE_FOLDER}/summary.json"
PLAN_FOLDER = f"{STATE_FOLDER}/plan"
PLAN_FILE = f"{PLAN_FOLDER}/plan.json"
# Version 1 has no id, and compares fewer settings: it can be read and overwritten, but not resumed.
PLAN_VERSION = 2
# A plan that has grown: a program that knows only version 2 would take its later units for foreign files.
GROWN_VERSION = 3
# A prediction log, which grows by files of any name and has no units to resume: see `pipeline.dest.prediction_log`.
LOG_VERSION = 4
# Up to this number, each shard is a unit. Beyond it, small shards share a unit of up to UNIT_BYTES, so that ten million
# of them become some hundred thousand units, files and commit records. Only the position decides: no total is needed.
SINGLE_SHARD_UNITS = 10_000
UNIT_BYTES = 256 * 2**20
# Maximum number of loose images in a unit. The first units are small, so that all cores have work at once and labels
# come early; the last ones take a share of what is left, so that all cores end together.
UNIT_IMAGES = 1_000
LEAST_UNIT_IMAGES = 16
UNIT_SHARE = 32
SEGMENT_ROWS = 100_000
# Segments that are fetched at a time: a plan that grew each day has hundreds, which take some milliseconds each.
SEGMENTS_AHEAD = 4

_UNITS = pa.schema(
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
class Plan:
    """The head of a plan; its units are read from storage as they are needed.

    Attributes:
        settings: What must be the same for a resume, by name.
        units: How many units.
        shards: How many slices of shards.
        bytes: Bytes of all input.
        segments: SHA-256 of each segment file, by name, in order of units.
        id: Hash of all that is above: two plans with the same id have the same units and settings.
        earlier: The ids that it had before it grew, oldest first, with the number of units then. Written only if any.
        parts: Names of the part files of a prediction log, by unit; found by a listing, and never written.
    """

    settings: dict[str, Any]
    units: int
    shards: int
    bytes: int
    segments: dict[str, str] = field(default_factory=dict)
    id: str = ""
    version: int = PLAN_VERSION
    earlier: dict[str, int] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        """Whether this is a prediction log."""
        return self.version == LOG_VERSION

    def part(self, unit: int) -> str:
        """Return the name of a unit's part file."""
        return self.parts[unit] if self.is_log else part_name(unit)

    def values(self) -> dict[str, Any]:
        """Return what plan.json holds."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name != "parts" and (name != "earlier" or value)}

    def hashed(self) -> str:
        """Return the `id` that belongs to these values."""
        values = {name: value for name, value in self.values().items() if name not in ("id", "version")}
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def cut_units(slices: Iterable[Slice], *, images: bool = False, first: int = 0) -> Iterator[Unit]:
    """Group slices into units by their number, order and sizes alone.

    Args:
        slices: In the source's order.
        images: Whether each slice is one loose image; then a unit is up to UNIT_IMAGES of them.
        first: Number of the first unit.
    """
    if images:
        yield from _image_units(slices, first)
        return
    number = first
    group: list[Slice] = []
    size = 0
    for piece in slices:
        # A part of a file is a unit by itself: its size says nothing, as it is the whole file's.
        is_part = piece.stop >= 0 or (bool(group) and group[-1].stop >= 0)
        if group and (number < SINGLE_SHARD_UNITS or is_part or size + piece.size > UNIT_BYTES):
            yield Unit(number, tuple(group))
            number += 1
            group, size = [], 0
        group.append(piece)
        size += piece.size
    if group:
        yield Unit(number, tuple(group))


def _image_units(slices: Iterable[Slice], first: int) -> Iterator[Unit]:
    """Group loose images, reading UNIT_SHARE * UNIT_IMAGES of them ahead."""
    rest = iter(slices)
    known = deque(islice(rest, UNIT_SHARE * UNIT_IMAGES))
    number = first
    while known:
        at_the_start, at_the_end = LEAST_UNIT_IMAGES * (number - first + 1), len(known) // UNIT_SHARE
        size = min(UNIT_IMAGES, at_the_start, max(LEAST_UNIT_IMAGES, at_the_end), len(known))
        yield Unit(number, tuple(known.popleft() for _ in range(size)))
        known.extend(islice(rest, size))
        number += 1


def write_plan(dest: Storage, units: Iterable[Unit], settings: dict[str, Any]) -> Plan:
    """Write segments as units come, and plan.json last.

    Raises:
        StorageError: DEST cannot be written.
    """
    plan = _with_units(dest, Plan(settings, units=0, shards=0, bytes=0), units)
    dest.create(PLAN_FILE, json.dumps(plan.values(), indent=1).encode())
    return plan


def extend_plan(dest: Storage, plan: Plan, units: Iterable[Unit]) -> Plan:
    """Append units to DEST's plan; without new units nothing is written.

    Args:
        dest: DEST, held by this run.
        plan: DEST's plan as it was read.
        units: Numbered from `plan.units` on.

    Raises:
        StorageError: DEST cannot be written, or its plan has changed since.
    """
    grown = _with_units(dest, plan, units)
    if grown.units == plan.units:
        return plan
    grown = replace(grown, earlier={**plan.earlier, plan.id: plan.units}, version=GROWN_VERSION)
    grown = replace(grown, id=grown.hashed())
    content, version = dest.read_version(PLAN_FILE)
    written = json.dumps(grown.values(), indent=1).encode()
    is_as_read = json.loads(content)["id"] == plan.id
    if is_as_read and version is None:
        dest.write_bytes(PLAN_FILE, written)
    elif not is_as_read or dest.put_if(PLAN_FILE, written, version) is None:
        raise StorageError(f"cannot write {dest.describe(PLAN_FILE)}: another run has just written it")
    return grown


def _with_units(dest: Storage, plan: Plan, units: Iterable[Unit]) -> Plan:
    """Write segments of units; return the plan with them."""
    segments = dict(plan.segments)
    counts = Counter(units=plan.units, shards=plan.shards, bytes=plan.bytes)
    waiting: list[Unit] = []
    rows = 0
    for unit in units:
        counts["units"] += 1
        counts["shards"] += len(unit.slices)
        counts["bytes"] += unit.own_bytes
        waiting.append(unit)
        rows += len(unit.slices)
        if rows >= SEGMENT_ROWS:
            _write_segment(dest, segments, waiting, grows=bool(plan.id))
            waiting, rows = [], 0
    if waiting:
        _write_segment(dest, segments, waiting, grows=bool(plan.id))
    plan = replace(plan, units=counts["units"], shards=counts["shards"], bytes=counts["bytes"], segments=segments)
    return replace(plan, id=plan.hashed())


def read_plan(dest: Storage, *, logs: bool = False) -> Plan | None:
    """Return DEST's plan, or None where there is none.

    Args:
        dest: DEST.
        logs: Whether DEST may be a prediction log; only its head is read.

    Raises:
        ConfigError: It is damaged, has an unknown version, or is a prediction log.
    """
    if dest.stat(PLAN_FILE) is None:
        return None
    try:
        values = json.loads(dest.read_bytes(PLAN_FILE))
        if values["version"] == 1:
            values["segments"] = dict.fromkeys(values["segments"], "")
        elif values["version"] == LOG_VERSION and not logs:
            raise ConfigError(
                f"{dest.describe()} is a prediction log of `serve`, which has no SOURCE and cannot start over; "
                "`report`, `diff` and `verify` read it; give another folder"
            )
        elif values["version"] not in (PLAN_VERSION, GROWN_VERSION, LOG_VERSION):
            raise ConfigError(
                f"{dest.describe()} was begun by another version of shardlabel (plan version {values['version']}, "
                f"this one knows {GROWN_VERSION}); finish it there, or give another --output"
            )
        plan = Plan(**values)
    except (ValueError, TypeError, KeyError) as err:
        raise _damaged(dest, str(err)) from err
    if not isinstance(plan.units, int) or (plan.version > 1 and plan.id != plan.hashed()):
        raise _damaged(dest, "its id does not match its content")
    return plan


def open_plan(dest: Storage, *, logs: bool = False) -> Plan:
    """Return the plan of a DEST that has one; see `read_plan`.

    Raises:
        SourceError: It has none.
        ConfigError: As `read_plan`.
    """
    plan = read_plan(dest, logs=logs)
    if plan is None:
        if dest.is_folder():
            what = "there is no plan in it"
        else:
            what = "there is no such folder" if dest.stat() is None else "it is a file"
        raise SourceError(f"{dest.describe()} holds no run of shardlabel: {what}; give a folder that `label` wrote to")
    return plan


def _damaged(dest: Storage, how: str) -> ConfigError:
    return ConfigError(
        f"{dest.describe(PLAN_FILE)} is damaged ({how}), so the files of that run are not known; give another "
        "--output, or remove them by hand"
    )


def iter_units(dest: Storage, plan: Plan) -> Iterator[Unit]:
    """Yield the plan's units in order, with few segments in memory. Each part of a log is a unit without shards."""
    yield from (Unit(number, ()) for number in range(len(plan.parts)))
    contents = ahead(plan.segments.items(), lambda segment: _read_segment(dest, *segment), calls=SEGMENTS_AHEAD)
    files = (pq.ParquetFile(io.BytesIO(content)) for content in contents)
    yield from units_of(batch for file in files for batch in file.iter_batches(batch_size=10_000))


def units_table(units: Iterable[Unit]) -> pa.Table:
    """Return units as a table with one row per slice."""
    rows = ((unit.number, p.shard, p.size, p.etag, p.start, p.stop, p.limit) for unit in units for p in unit.slices)
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _UNITS, strict=True)], schema=_UNITS)


def units_of(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Unit]:
    """Yield the units of consecutive tables of this kind."""
    rows = (row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True))
    for number, group in groupby(rows, key=itemgetter(0)):
        yield Unit(number, tuple(Slice(*values) for _, *values in group))


def limited(slices: Iterable[Slice], images: int, count: Callable[[Slice, int], int]) -> Iterator[Slice]:
    """Yield the slices that hold the first `images` images, the last one cut.

    Args:
        slices: In the source's order.
        images: How many in all.
        count: Counts a slice's samples, up to a number, by reading it: there is no index.
    """
    for piece in slices:
        found = count(piece, images)
        yield replace(piece, limit=found if found == images else -1)
        images -= found
        if images <= 0:
            return


def _write_segment(dest: Storage, segments: dict[str, str], units: list[Unit], *, grows: bool) -> None:
    buffer = io.BytesIO()
    pq.write_table(units_table(units), buffer, compression="zstd")
    digest = sha256(buffer.getvalue()).hexdigest()
    # Named by content if a plan grows: a driver that was presumed dead overwrites nothing that the plan now names.
    name = f"units-{len(segments):05d}{f'-{digest[:16]}' if grows else ''}.parquet"
    dest.write_bytes(f"{PLAN_FOLDER}/{name}", buffer.getvalue())
    segments[name] = digest


def _read_segment(dest: Storage, name: str, digest: str) -> bytes:
    content = dest.read_bytes(f"{PLAN_FOLDER}/{name}")
    if digest and sha256(content).hexdigest() != digest:
        raise ConfigError(
            f"{dest.describe(f'{PLAN_FOLDER}/{name}')} is damaged: its SHA-256 differs from the plan's; start over "
            "with --overwrite, or give another --output"
        )
    return content
