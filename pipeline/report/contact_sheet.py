"""Choose samples of a run that are worth looking at, and fetch thumbnails of them from SOURCE.

The choice depends on nothing but the run. What it costs is bounded: a few units, and of each the first bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from PIL import Image

from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.errors import InputError, ShardlabelError, SourceError
from models.spec import Interpolation, Preprocessing
from pipeline.config import SourceFormat
from pipeline.dest.plan import Plan, iter_units
from pipeline.dest.writer import STATUS_OK, OutputSpec
from pipeline.fetch.settings import FetchSettings, storage_options
from pipeline.operators.stages import UnitSettings, samples_at
from pipeline.report.scan import REACH_BYTES, Counts, LabelledRow, Place, reach, read_rows
from pipeline.report.unit_table import UnitTable
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.unit import Unit
from pipeline.storage.storage import Storage, open_storage

SHEET_SIZE = 96
SHEET_UNITS = 8
SHEET_BAD = 16
THUMBNAIL_SIDE = 128
# Units of which nothing could be read before the others are given up: each may wait for retries.
MAX_FAILURES = 3


class Group(StrEnum):
    """Why a sample is on the sheet."""

    ACROSS = "across"
    LOWEST = "lowest"
    BAD = "bad"


@dataclass(slots=True)
class ContactSheet:
    """Samples by group, in order, with their pictures.

    Attributes:
        groups: Rows of each group.
        thumbnails: JPEG by (shard, key), where the picture could be had.
        problems: Why pictures are missing, a sentence each.
    """

    groups: dict[Group, list[LabelledRow]]
    thumbnails: dict[tuple[str, str], bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def build_sheet(dest: Storage, plan: Plan, units: UnitTable, counts: Counts) -> ContactSheet:
    """Choose the samples and fetch what can be had of their pictures."""
    sheet = choose_samples(dest, plan, units, counts)
    wanted: dict[int, list[LabelledRow]] = {}
    for row in (*sheet.groups[Group.ACROSS], *sheet.groups[Group.LOWEST]):
        wanted.setdefault(row.unit, []).append(row)
    if not wanted:
        return sheet
    try:
        settings = reader_settings(dest, plan, counts.metadata)
    except (ShardlabelError, KeyError, ValueError) as err:
        sheet.problems.append(f"SOURCE cannot be read: {err}")
        return sheet
    _add_thumbnails(sheet, settings, iter_units(dest, plan), wanted)
    return sheet


def choose_samples(dest: Storage, plan: Plan, units: UnitTable, counts: Counts) -> ContactSheet:
    """Choose the rows: some of units spread over the run, the lowest scores, and some without a label of each kind."""
    # In a small run most rows would be among the lowest; they are to be few.
    lowest = [(unit, position) for _, unit, position in counts.lowest][: max(1, int(counts.scores.sum()) // 4)]
    bad = _in_turn(counts.bad, SHEET_BAD)
    across = _spread(units, SHEET_SIZE - len(lowest) - len(bad), skip={*lowest, *bad})
    rows = {(row.unit, row.position): row for row in read_rows(dest, [*lowest, *bad, *across], plan.part)}
    return ContactSheet(
        {
            Group.ACROSS: [rows[place] for place in across if place in rows and rows[place].status == STATUS_OK],
            Group.LOWEST: [rows[place] for place in lowest if place in rows],
            Group.BAD: [rows[place] for place in bad if place in rows],
        }
    )


def _in_turn(places: dict[str, list[Place]], count: int) -> list[Place]:
    """Take one of each status, then a second of each, and so on."""
    turns = max((len(some) for some in places.values()), default=0)
    ordered = [some[turn] for turn in range(turns) for _, some in sorted(places.items()) if turn < len(some)]
    return ordered[:count]


def _spread(units: UnitTable, count: int, *, skip: set[Place]) -> list[Place]:
    """Return places at equal distances: of SHEET_UNITS units, in each over the rows within reach."""
    filled = np.flatnonzero(units.done & (units.rows > 0))
    if not len(filled):
        return []
    chosen = filled[np.unique(np.linspace(0, len(filled) - 1, min(SHEET_UNITS, len(filled))).round().astype(int))]
    places: list[Place] = []
    for index, unit in enumerate(chosen.tolist()):
        share = (count - len(places)) // (len(chosen) - index)
        within = reach(int(units.rows[unit]), int(units.bytes_read[unit]))
        taken = {position for other, position in skip if other == unit}
        # As many more as may be taken already, so that a small unit gives all it has.
        even = np.unique(np.linspace(0, within, share + len(taken), endpoint=False).astype(int)).tolist()
        places += [(unit, position) for position in even if position not in taken][:share]
    return places


def reader_settings(dest: Storage, plan: Plan, metadata: dict[str, str]) -> UnitSettings:
    """Return the settings that the run read SOURCE with, and a preprocessing whose pixels are the thumbnails.

    Raises:
        SourceError: The location of SOURCE is malformed, or there is none: a prediction log keeps no images.
        KeyError: The plan or the metadata lack something.
    """
    if plan.is_log:
        raise SourceError("a prediction log keeps no images")
    settings = plan.settings
    model = Preprocessing.model_validate_json(metadata["shardlabel.preprocessing"])
    return UnitSettings(
        source=open_storage(settings["source"]),
        dest=dest,
        format=SourceFormat(settings["format"]),
        preprocessing=Preprocessing(
            resize_shorter=round(THUMBNAIL_SIDE * model.resize_shorter / model.crop),
            crop=THUMBNAIL_SIDE,
            interpolation=Interpolation.BILINEAR,
            scale=1.0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        mode=DecodeMode.FAST,
        limits=ImageLimits(max_pixels=settings["max-pixels"], max_image_bytes=settings["max-image-bytes"]),
        batch_size=1,
        output=OutputSpec((), {}),
        columns=ParquetColumns(
            settings.get("image-column"), settings.get("key-column"), uri=settings.get("uri-column")
        ),
        fetch=FetchSettings(
            allow_private_hosts=bool(settings.get("allow-private-hosts")), storage_options=storage_options()
        ),
    )


def _add_thumbnails(
    sheet: ContactSheet, settings: UnitSettings, units: Iterable[Unit], wanted: dict[int, list[LabelledRow]]
) -> None:
    """Walk through the plan up to the last unit that is wanted, and read of those what is wanted."""
    failures = 0
    left = set(wanted)
    for unit in units:
        if unit.number not in left:
            continue
        left.remove(unit.number)
        try:
            _read_thumbnails(sheet, settings, unit, wanted[unit.number])
        except ShardlabelError as err:
            failures += 1
            sheet.problems.append(str(err))
        if not left or failures == MAX_FAILURES:
            break
    missing = sum((row.shard, row.key) not in sheet.thumbnails for rows in wanted.values() for row in rows)
    if missing:
        sheet.problems.append(
            f"{missing} pictures are missing: not to be had from SOURCE, or not within the reading limit"
        )


def _read_thumbnails(sheet: ContactSheet, settings: UnitSettings, unit: Unit, rows: list[LabelledRow]) -> None:
    """Read the unit's shards up to the last sample that is wanted, or up to twice REACH_BYTES."""
    keys = {(row.shard, row.key) for row in rows}
    budget = 2 * REACH_BYTES
    # The key of a loose image is its path, which is the slice.
    named_by = 1 if settings.format is SourceFormat.IMAGES else 0
    for piece in unit.slices:
        here = {key for key in keys if key[named_by] == piece.shard} - sheet.thumbnails.keys()
        if not here or budget < 0:
            continue
        places = [row.position for row in rows]
        with closing(samples_at(settings, replace(unit, slices=(piece,)), places)) as samples:
            for sample in samples:
                budget -= len(sample.data or b"")
                if (sample.shard, sample.key) in here and sample.data is not None:
                    here.remove((sample.shard, sample.key))
                    try:
                        sheet.thumbnails[sample.shard, sample.key] = thumbnail(sample.data, settings)
                    except InputError as err:
                        sheet.problems.append(f"{sample.key}: {err}")
                if not here or budget < 0:
                    break


def thumbnail(data: bytes, settings: UnitSettings) -> bytes:
    """Return an image as the model sees it, cut and small, as JPEG.

    Raises:
        InputError: It cannot be decoded.
    """
    side = settings.preprocessing.crop
    pixels = np.empty((side, side, 3), np.uint8)
    decode_image(data, settings.preprocessing, settings.mode, settings.limits, out=pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()
