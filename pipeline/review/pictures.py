"""Fetch the pictures of a draw from SOURCE, and turn them into files that any browser shows.

A tar has no index: a picture in it costs reading all that lies before it. Each shard is read once, from front to back,
up to the last picture that is wanted; several shards at a time, and of each one picture in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from PIL import Image

from models.decode.headers import ENDINGS, ImageFormat, ImageLimits, check_header, sniff_format
from models.decode.pillow import load_rgb, open_image, stored_orientation, stored_size, undecodable, upright
from models.errors import InputError, StorageError
from pipeline.config import SourceFormat
from pipeline.operators.stages import UnitSettings, samples_at
from pipeline.review.draws import DrawnRow
from pipeline.sources.unit import Unit
from pipeline.storage.listing import ahead
from pipeline.storage.retries import Fault, classify

SHARDS_AHEAD = 4
# Shards that storage did not answer for before the others are given up: each waits for minutes.
MAX_SILENT = 3
# What browsers show as it is.
_SHOWN = (ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.GIF, ImageFormat.WEBP)
JPEG_QUALITY = 85

Save = Callable[[DrawnRow, bytes], str]


@dataclass(frozen=True, slots=True)
class Picture:
    """What became of one picture.

    Attributes:
        row: Whose it is.
        file: Where it was saved, as `save` says; None where it could not be had.
        why: Then why not, in a few words.
    """

    row: DrawnRow
    file: str | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard of a unit, or the loose images of one, and what is wanted of it."""

    unit: Unit
    rows: tuple[DrawnRow, ...]


def fetch_pictures(
    settings: UnitSettings, units: Iterable[Unit], rows: Iterable[DrawnRow], save: Save
) -> Iterator[Picture]:
    """Read the pictures of rows from SOURCE and save each; yield what became of every one, in any order.

    Args:
        settings: How SOURCE is read.
        units: The plan's, in order.
        rows: Whose pictures are wanted.
        save: Keeps a picture's bytes, and returns where. Called in threads.

    Raises:
        StorageError: A picture cannot be saved. SOURCE that cannot be read is a reason, and no error.
    """
    silent: list[str] = []

    def read(shard: _Shard) -> list[Picture]:
        if len(silent) >= MAX_SILENT:
            return [Picture(row, None, f"SOURCE does not answer ({silent[-1]})") for row in shard.rows]
        return list(_read_shard(settings, shard, save, silent))

    for pictures in ahead(_shards(settings, units, rows), read, calls=SHARDS_AHEAD):
        yield from pictures


def _shards(settings: UnitSettings, units: Iterable[Unit], rows: Iterable[DrawnRow]) -> Iterator[_Shard]:
    """Yield the shards that hold wanted rows; the plan is read no further than the last of them."""
    wanted: dict[int, list[DrawnRow]] = {}
    for row in rows:
        wanted.setdefault(row.unit, []).append(row)
    for unit in units if wanted else ():
        own = wanted.pop(unit.number, [])
        if own and settings.format is SourceFormat.IMAGES:
            # The key of a loose image is its path, which is the slice.
            keys = {row.key for row in own}
            yield _Shard(replace(unit, slices=tuple(p for p in unit.slices if p.shard in keys)), tuple(own))
        elif own:
            for name in dict.fromkeys(row.shard for row in own):
                pieces = tuple(piece for piece in unit.slices if piece.shard == name)
                yield _Shard(replace(unit, slices=pieces), tuple(row for row in own if row.shard == name))
        if not wanted:
            break


def _read_shard(settings: UnitSettings, shard: _Shard, save: Save, silent: list[str]) -> Iterator[Picture]:
    """Yield the pictures of one shard; what storage did not answer for is put to `silent`."""
    left = {(row.shard, row.key): row for row in shard.rows}
    why = "it is not in its shard any more"
    try:
        for sample in samples_at(settings, shard.unit, [row.position for row in shard.rows]):
            row = left.pop((sample.shard, sample.key), None)
            if row is not None:
                yield _saved(row, sample.data, sample.error, save)
            if not left:
                break
    except StorageError as err:
        why = str(err)
        if classify(err.__cause__ or err) is not Fault.PERMANENT:
            silent.append(why)
    for row in left.values():
        yield Picture(row, None, why)


def _saved(row: DrawnRow, data: bytes | None, error: str | None, save: Save) -> Picture:
    if data is None:
        return Picture(row, None, error or "it has no bytes")
    try:
        return Picture(row, save(row, data))
    except InputError as err:
        return Picture(row, None, str(err))


def for_browser(data: bytes, limits: ImageLimits) -> tuple[bytes, str]:
    """Return a picture that browsers show, and the ending of its name: the same bytes where they do, else a JPEG.

    Raises:
        InputError: It cannot be decoded.
    """
    kind = sniff_format(data)
    return (data, ENDINGS[kind]) if kind in _SHOWN else (as_jpeg(data, limits), ENDINGS[ImageFormat.JPEG])


def as_jpeg(data: bytes, limits: ImageLimits, longest_side: int | None = None) -> bytes:
    """Return a picture as JPEG, upright, made smaller where its longer side has more pixels.

    Raises:
        InputError: It cannot be decoded.
    """
    kind = sniff_format(data)
    check_header(kind, data, limits)
    image = open_image(kind, data, limits)
    limits.check_pixels(*stored_size(image))
    with undecodable(kind):
        if longest_side is not None and kind is ImageFormat.JPEG:
            image.draft("RGB", (longest_side, longest_side))
        rgb = upright(load_rgb(image), stored_orientation(image))
        if longest_side is not None:
            rgb.thumbnail((longest_side, longest_side), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()
