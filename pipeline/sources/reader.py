"""The entry point for all formats: how SOURCE divides into slices, and how a unit's samples are read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import compress, islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.decode.decode import ImageLimits
from models.errors import ConfigError, SourceError
from pipeline.config import LabelConfig, SourceFormat
from pipeline.fetch.settings import ANY_FETCH, FetchSettings, storage_options
from pipeline.sources.images import read_images
from pipeline.sources.manifest import read_manifest, row_runs, total_rows
from pipeline.sources.parquet import PIECE_BYTES, open_parquet, read_parquet, row_group_pieces
from pipeline.sources.parquet_columns import ANY_COLUMNS, ParquetColumns, choose_columns
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice, Unit
from pipeline.sources.webdataset import read_webdataset
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

# Files that are tried for a schema: broken ones before the first whole one are bad shards, not a bad source.
SCHEMA_TRIES = 16

Note = Callable[[str, ShardNotes], None]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What a worker needs to read units. Picklable.

    Attributes:
        source: The folder that shard names are relative to.
        format: Format of the shards.
        limits: Limits on the size of an image.
        columns: For Parquet: which columns are read.
        fetch: For manifests: limits of fetching.
        beside: For tars: whether to read the small members beside the images.
    """

    source: Storage
    format: SourceFormat
    limits: ImageLimits
    columns: ParquetColumns = ANY_COLUMNS
    fetch: FetchSettings = ANY_FETCH
    beside: bool = False


def first_schema(source: Source) -> pa.Schema | None:
    """Return the schema of the first readable Parquet file; None if none of the first SCHEMA_TRIES is readable.

    Raises:
        StorageError: Storage failed.
    """
    for file in islice(source.fetchable(), SCHEMA_TRIES):
        with suppress(OSError, ValueError), closing(source.base.open_random(file.shard)) as random:
            return open_parquet(random).schema_arrow
    return None


def columns_of(source: Source, config: LabelConfig, *, taken: tuple[str, ...] = ()) -> ParquetColumns:
    """Choose which Parquet columns are read, by the schema of the first readable file.

    Args:
        source: SOURCE.
        config: Its image_column, uri_column, key_column and carry.
        taken: Names of the output's own columns.

    Raises:
        ConfigError: A column is missing or of the wrong type; or columns were named, and SOURCE is not Parquet.
        StorageError: Storage failed.
    """
    if source.format is not SourceFormat.PARQUET:
        if config.image_column or config.uri_column or config.key_column or config.carry:
            raise ConfigError(
                "--image-column, --uri-column, --key-column and --carry are for Parquet; SOURCE is "
                f"{source.format.value}"
            )
        return ParquetColumns()
    schema = first_schema(source)
    if schema is not None:
        return choose_columns(
            schema, config.image_column, config.key_column, config.carry, taken, uri=config.uri_column
        )
    if config.carry:
        raise SourceError(
            f"--carry: none of the first {SCHEMA_TRIES} files can be read, so their columns are not known"
        )
    return ParquetColumns(config.image_column, config.key_column, uri=config.uri_column)


def fetch_settings(config: LabelConfig) -> FetchSettings:
    """Return how the images of manifests are fetched, by all processes together."""
    if config.uri_column is None:
        return ANY_FETCH
    return FetchSettings(
        config.allow_private_hosts,
        config.connections_per_host,
        config.requests_per_second,
        config.fetch_timeout_s,
        storage_options(),
    )


def slices(source: Source, *, manifests: bool = False) -> Iterator[Slice]:
    """Divide SOURCE, lazily and the same on every run: into shards, parts of large Parquet files, or loose images.

    Parquet files over PIECE_BYTES and manifests have their footers read; nothing else is read.

    Args:
        source: SOURCE.
        manifests: Whether its Parquet files hold URIs: then a slice is a run of rows, not of row groups.

    Raises:
        SourceError: SOURCE cannot be used.
        StorageError: Storage failed.
    """
    if source.format is not SourceFormat.PARQUET:
        return source.files()

    def divide(file: Slice) -> list[Slice]:
        runs = _runs(source.base, file, of_rows=manifests)
        return [replace(file, start=start, stop=stop) for start, stop in runs]

    divided = ahead(source.files(), divide)
    return (piece for pieces in divided for piece in pieces)


def read_unit(settings: ReadSettings, unit: Unit, note: Note, wanted: BoolArray | None = None) -> Iterator[Sample]:
    """Yield a unit's samples in input order, reading each shard once.

    Args:
        settings: Where and how to read.
        unit: What to read.
        note: Called after each shard with its name and the notes from reading it; also if reading ends early.
        wanted: bool of shape (n_samples,): which of the unit's samples to yield; None for all. Other loose images are
            not read, and other images of manifests are not fetched.

    Raises:
        StorageError: A shard cannot be read, even with retries, or is not the planned one.
        SourceError: The unit has another number of samples than `wanted`.
    """
    if wanted is None or settings.columns.uri is not None:
        yield from _read_all(settings, unit, note, wanted)
        return
    if settings.format is SourceFormat.IMAGES:
        _check_count(unit, len(unit.slices), len(wanted))
        chosen = tuple(compress(unit.slices, wanted))
        if chosen:
            yield from _read_all(settings, replace(unit, slices=chosen), note)
        return
    count = 0
    for sample in _read_all(settings, unit, note):
        count += 1
        if count > len(wanted):
            break
        if wanted[count - 1]:
            yield sample
    _check_count(unit, count, len(wanted))


def _check_count(unit: Unit, count: int, expected: int) -> None:
    if count != expected:
        found = f"more than {expected}" if count > expected else str(count)
        raise SourceError(
            f"{unit.slices[0].shard}: its unit now gives {found} samples, and gave {expected} when it was labelled; "
            "label it into another DEST, or exclude its shards with --where"
        )


def _read_all(settings: ReadSettings, unit: Unit, note: Note, wanted: BoolArray | None = None) -> Iterator[Sample]:
    if settings.format is SourceFormat.IMAGES:
        notes = ShardNotes()
        try:
            yield from read_images(settings.source, unit.slices, notes, settings.limits)
        finally:
            note(unit.slices[0].shard, notes)
        return
    for piece in unit.slices:
        notes = ShardNotes()
        try:
            # Close it before its notes are taken: with a limit it stops in the middle, and closing completes the notes.
            with closing(_read_shard(settings, piece, notes, wanted)) as samples:
                yield from samples if piece.limit < 0 else islice(samples, piece.limit)
        finally:
            note(piece.shard, notes)


def _read_shard(
    settings: ReadSettings, piece: Slice, notes: ShardNotes, wanted: BoolArray | None = None
) -> Generator[Sample, None, None]:
    """Yield a shard's samples; `wanted` counts only for a manifest, whose pieces are units by themselves."""
    if why := settings.source.unreadable(piece.shard):
        notes.lose(why)
        return
    if settings.columns.uri is not None:
        s = settings
        yield from read_manifest(s.source, piece, notes, s.limits, s.columns, s.fetch, wanted)
        return
    if settings.format is SourceFormat.PARQUET:
        with closing(settings.source.open_random(piece.shard, expected=piece.planned)) as file:
            groups = (piece.start, piece.stop)
            remote = not settings.source.is_local
            yield from read_parquet(
                file, piece.shard, notes, settings.limits, settings.columns, groups, prefetch=remote
            )
        return
    with settings.source.open_stream(piece.shard, expected=piece.planned, span=(piece.start, piece.stop)) as stream:
        goes_on = 0 <= piece.stop < piece.size
        yield from read_webdataset(stream, piece.shard, notes, settings.limits, beside=settings.beside, goes_on=goes_on)


def _runs(storage: Storage, file: Slice, *, of_rows: bool) -> list[tuple[int, int]]:
    """Return (start, stop) of the parts of a Parquet file; (0, -1) for one that is not cut."""
    if (file.size <= PIECE_BYTES and not of_rows) or storage.unreadable(file.shard):
        return [(0, -1)]
    with closing(storage.open_random(file.shard, expected=file.planned)) as random:
        try:
            metadata = open_parquet(random).metadata
            return list(row_runs(total_rows(metadata)) if of_rows else row_group_pieces(metadata))
        except (OSError, ValueError):
            return [(0, -1)]  # the worker that reads it notes why
