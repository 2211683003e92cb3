"""Read the pictures of some rows of a DEST from SOURCE, and turn them into what pages and browsers show.

A tar has no index: a picture in it costs reading all that lies before it. Each shard is read once, from front to back,
up to the last picture that is wanted; several shards at a time, and of each one picture in memory.
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
# Shards that storage did not answer for before the others are given up: each waits for minutes.
MAX_SILENT = 3
# What browsers show as it is.
_SHOWN = (ImageFormat.JPEG, ImageFormat.PNG, ImageFormat.GIF, ImageFormat.WEBP)
JPEG_QUALITY = 85


RowT = TypeVar("RowT", bound=PlacedRow)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture(Generic[RowT, T]):
    """What became of one picture.

    Attributes:
        row: Whose it is.
        saved: What `save` returned; None where it could not be had.
        why: Then why not, in a few words.
    """

    row: RowT
    saved: T | None
    why: str | None = None


def reader_settings(dest: Storage, plan: Plan) -> ReadSettings:
    """Return the settings that DEST's run read SOURCE with.

    Raises:
        SourceError: The plan does not say, or there is no SOURCE: a prediction log keeps no images.
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
    """Yield a unit's samples; of a manifest only those at some places in it, as the others would be fetched.

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
    """Read the pictures of rows from SOURCE and save each; yield what became of every one, in any order.

    Args:
        settings: How SOURCE is read.
        units: The plan's, in order.
        rows: Whose pictures are wanted.
        save: Keeps a picture's bytes, and returns what of it is wanted. Called in threads.
        most_bytes: Of images that are read of a shard, at most; of the others it is said then.

    Raises:
        StorageError: A picture cannot be saved. SOURCE that cannot be read is a reason, and no error.
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
    """Read pictures for a page, within reach: see `pipeline.report.scan.reach`.

    Args:
        dest: DEST.
        plan: Its plan.
        metadata: Of a part file.
        rows: Whose pictures are wanted.
        keep: Takes each as it is in SOURCE. Called in threads.

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
    """Yield the shards that hold wanted rows, or a unit's loose images, with those rows; the plan's rest is not read."""
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
    """Yield the pictures of one shard; what storage did not answer for is put to `silent`."""
    left = {(row.shard, row.key): row for row in rows}
    why, size = "it is not in its shard any more", 0
    try:
        for sample in samples_at(settings, shard, [row.position for row in rows]):
            row = left.pop((sample.shard, sample.key), None)
            if row is not None:
                yield _saved(row, sample.data, sample.error, save)
            size += len(sample.data or b"")
            if not left:
                break
            if most_bytes is not None and size > most_bytes:
                why = f"it lies behind the first {bytes_text(most_bytes)}"
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
    """Return a preprocessing whose pixels are thumbnails, cut as the model sees images."""
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
    """Return an image small, as JPEG.

    Raises:
        InputError: It cannot be decoded.
    """
    pixels = decode_image(data, settings.preprocessing, settings.mode, settings.limits).pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75, optimize=True)
    return buffer.getvalue()


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
