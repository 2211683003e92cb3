"""Read the pictures of some rows of a DEST from SOURCE, and convert them for pages and browsers.

A tar has no index: to reach a picture, everything before it must be read. Each shard is read once, from front to back, up
to the last wanted picture. Several shards are read at a time, with one picture of each in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from models.decode.decode import DecodeMode, decode_image
from models.decode.headers import ENDINGS, ImageFormat, ImageLimits, check_header, sniff_format
from models.decode.pillow import load_rgb, open_image, stored_orientation, stored_size, undecodable, upright
from models.errors import InputError, ShardlabelError, SourceError, StorageError
from models.spec import Interpolation, Preprocessing
from pipeline.config import SourceFormat
from pipeline.dest.plan import Plan, iter_units
from pipeline.fetch.settings import FetchSettings, storage_options
from pipeline.operators.stages import DecodeSettings
from pipeline.quantities import bytes_text
from pipeline.report.scan import REACH_BYTES, Place, PlacedRow
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.reader import ReadSettings, read_unit
from pipeline.sources.sample import Sample
from pipeline.sources.unit import Unit
from pipeline.storage.listing import ahead
from pipeline.storage.retries import Fault, classify
from pipeline.storage.storage import Storage, open_storage

THUMBNAIL_SIDE = 128
SHARDS_AHEAD = 4
# After this many shards for which storage did not answer, the others are given up: each waits for minutes.
MAX_SILENT = 3
# Formats that browsers show.
_SHOWN = (ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.GIF, ImageFormat.WEBP)
JPEG_QUALITY = 85


RowT = TypeVar("RowT", bound=PlacedRow)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture(Generic[RowT, T]):
    """The result for one picture.

    Attributes:
        row: Row of the picture.
        saved: Result of `save`; None where the picture could not be read.
        why: Why it could not be read, in a few words.
    """

    row: RowT
    saved: T | None
    why: str | None = None


def reader_settings(dest: Storage, plan: Plan) -> ReadSettings:
    """Return the settings that DEST's run read SOURCE with.

    Raises:
        SourceError: The plan does not have them, or there is no SOURCE: a prediction log keeps no images.
    """
    if plan.is_log:
        raise SourceError("a prediction log keeps no images")
    settings = plan.settings
    fetch = FetchSettings(bool(settings.get("allow-private-hosts")), storage_options=storage_options())
    try:
        return ReadSettings(
            open_storage(settings["source"]),
            SourceFormat(settings["format"]),
            ImageLimits(max_pixels=settings["max-pixels"], max_image_bytes=settings["max-image-bytes"]),
            ParquetColumns(settings.get("image-column"), settings.get("key-column"), uri=settings.get("uri-column")),
            fetch,
        )
    except (KeyError, ValueError) as err:
        raise SourceError(
            f"{dest.describe()} does not say how SOURCE was read ({err}), so there are no pictures"
        ) from err


def samples_at(settings: ReadSettings, unit: Unit, places: Sequence[int]) -> Iterator[Sample]:
    """Yield a unit's samples; of a manifest only those at `places`, since the others would be fetched too.

    Raises:
        StorageError: A shard cannot be read, for good or for longer than the retries.
    """
    wanted = None
    if settings.columns.uri is not None:
        wanted = np.zeros(1 + max(places), np.bool_)
        wanted[list(places)] = True
    return read_unit(settings, unit, lambda shard, notes: None, wanted)


def fetch_pictures(
    settings: ReadSettings,
    units: Iterable[Unit],
    rows: Iterable[RowT],
    save: Callable[[RowT, bytes], T],
    *,
    most_bytes: int | None = None,
) -> Iterator[Picture[RowT, T]]:
    """Read the pictures of rows from SOURCE and save each; yield the result of each, in any order.

    Args:
        settings: How SOURCE is read.
        units: The plan's units, in order.
        rows: Rows whose pictures are wanted.
        save: Saves a picture's bytes; its result becomes `Picture.saved`. Called in threads.
        most_bytes: Most bytes of images to read of a shard; pictures after them have a reason instead.

    Raises:
        StorageError: A picture cannot be saved. SOURCE that cannot be read gives a reason, not an error.
    """
    silent: list[str] = []

    def read(shard: tuple[Unit, list[RowT]]) -> list[Picture[RowT, T]]:
        if len(silent) >= MAX_SILENT:
            return [Picture(row, None, f"SOURCE does not answer ({silent[-1]})") for row in shard[1]]
        return list(_read_shard(settings, *shard, save, silent, most_bytes))

    for pictures in ahead(_shards(settings, units, rows), read, calls=SHARDS_AHEAD):
        yield from pictures


def read_thumbnails(
    dest: Storage,
    plan: Plan,
    metadata: dict[str, str],
    rows: Sequence[RowT],
    keep: Callable[[RowT, bytes], None] = lambda row, data: None,
) -> tuple[dict[Place, bytes], list[str]]:
    """Read pictures for a page, within reach; see `pipeline.report.scan.reach`.

    Args:
        dest: Storage of DEST.
        plan: Plan of DEST.
        metadata: Metadata of a part file.
        rows: Rows whose pictures are wanted.
        keep: Takes each picture as it is in SOURCE. Called in threads.

    Returns:
        (thumbnails, problems): JPEGs by unit and position; and why others are missing, a sentence each.
    """
    if not rows:
        return {}, []
    try:
        settings = reader_settings(dest, plan)
        decoding = _thumbnails(metadata, settings.limits)
    except (ShardlabelError, KeyError, ValueError) as err:
        return {}, [f"SOURCE cannot be read: {err}"]

    def save(row: RowT, data: bytes) -> bytes:
        small = thumbnail(data, decoding)
        keep(row, data)
        return small

    found = list(fetch_pictures(settings, iter_units(dest, plan), rows, save, most_bytes=2 * REACH_BYTES))
    missing = [one for one in found if one.saved is None]
    problems = list(dict.fromkeys(f"{one.row.shard}: {one.why}" for one in missing))
    if missing:
        problems.append(f"{len(missing)} of {len(found)} pictures are missing")
    return {one.row.place: one.saved for one in found if one.saved is not None}, problems


def _shards(settings: ReadSettings, units: Iterable[Unit], rows: Iterable[RowT]) -> Iterator[tuple[Unit, list[RowT]]]:
    """Yield the shards (or a unit's loose images) that hold wanted rows, with those rows; other units are not read."""
    wanted: dict[int, list[RowT]] = {}
    for row in rows:
        wanted.setdefault(row.unit, []).append(row)
    for unit in units if wanted else ():
        own = wanted.pop(unit.number, [])
        if own and settings.format is SourceFormat.IMAGES:
            # The key of a loose image is its path, which is the slice.
            keys = {row.key for row in own}
            yield replace(unit, slices=tuple(p for p in unit.slices if p.shard in keys)), own
        elif own:
            for name in dict.fromkeys(row.shard for row in own):
                pieces = tuple(piece for piece in unit.slices if piece.shard == name)
                yield replace(unit, slices=pieces), [row for row in own if row.shard == name]
        if not wanted:
            break


def _read_shard(
    settings: ReadSettings,
    shard: Unit,
    rows: list[RowT],
    save: Callable[[RowT, bytes], T],
    silent: list[str],
    most_bytes: int | None,
) -> Iterator[Picture[RowT, T]]:
    """Yield the pictures of one shard; if storage does not answer, append the error to `silent`."""
    left = {(row.shard, row.key): row for row in rows}
    why, size = "it is no longer in its shard", 0
    try:
        for sample in samples_at(settings, shard, [row.position for row in rows]):
            row = left.pop((sample.shard, sample.key), None)
            if row is not None:
                yield _saved(row, sample.data, sample.error, save)
            size += len(sample.data or b"")
            if not left:
                break
            if most_bytes is not None and size > most_bytes:
                why = f"it comes after the first {bytes_text(most_bytes)}"
                break
    except StorageError as err:
        why = str(err)
        if classify(err.__cause__ or err) is not Fault.PERMANENT:
            silent.append(why)
    for row in left.values():
        yield Picture(row, None, why)


def _saved(row: RowT, data: bytes | None, error: str | None, save: Callable[[RowT, bytes], T]) -> Picture[RowT, T]:
    if data is None:
        return Picture(row, None, error or "it has no bytes")
    try:
        return Picture(row, save(row, data))
    except InputError as err:
        return Picture(row, None, str(err))


def _thumbnails(metadata: dict[str, str], limits: ImageLimits) -> DecodeSettings:
    """Return settings that decode thumbnails, cropped as the model sees images."""
    model = Preprocessing.model_validate_json(metadata["shardlabel.preprocessing"])
    small = Preprocessing(
        resize_shorter=round(THUMBNAIL_SIDE * model.resize_shorter / model.crop),
        crop=THUMBNAIL_SIDE,
        interpolation=Interpolation.BILINEAR,
        scale=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    return DecodeSettings(small, DecodeMode.FAST, limits)


def thumbnail(data: bytes, settings: DecodeSettings) -> bytes:
    """Return a thumbnail of an image, as JPEG.

    Raises:
        InputError: The image cannot be decoded.
    """
    pixels = decode_image(data, settings.preprocessing, settings.mode, settings.limits).pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()


def for_browser(data: bytes, limits: ImageLimits) -> tuple[bytes, str]:
    """Return a picture for browsers, and its file extension: the same bytes if browsers show the format, else a JPEG.

    Raises:
        InputError: The picture cannot be decoded.
    """
    kind = sniff_format(data)
    return (data, ENDINGS[kind]) if kind in _SHOWN else (as_jpeg(data, limits), ENDINGS[ImageFormat.JPEG])


def as_jpeg(data: bytes, limits: ImageLimits, longest_side: int | None = None) -> bytes:
    """Return a picture as upright JPEG, reduced to `longest_side` pixels where it is larger.

    Raises:
        InputError: The picture cannot be decoded.
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
