"""Manifests: Parquet files whose rows name images by URIs, which are fetched. A unit is a run of rows.

Memory: that of reading Parquet, plus what fetching ahead may hold (`pipeline.fetch.fetcher.AHEAD_BYTES` and one image).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import chain, compress, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.decode.decode import ImageLimits
from pipeline.fetch.settings import FetchSettings
from pipeline.sources.parquet import BATCH_BYTES, MAX_BATCH_ROWS, ParquetReader, texts
from pipeline.sources.parquet_columns import ParquetColumns
from pipeline.sources.sample import MAX_KEY_BYTES, Sample, ShardNotes, cut_key
from pipeline.sources.unit import Slice
from pipeline.storage.storage import Storage
from pipeline.storage.stored_file import RandomFile

# Rows of a unit: a manifest of a million images keeps a thousand processes busy. A larger one has larger units, since
# each unit reads its row group from the beginning. Fixed: a plan depends on them.
LEAST_ROWS = 1_000
MOST_ROWS = 10_000
USUAL_UNITS = 1_000
# A footer may claim any number.
MAX_MANIFEST_ROWS = 2_000_000_000
_DIGEST_BYTES = 64
# Keys that are checked at a time.
_KEY_ROWS = 16_384


def row_runs(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the units of a manifest with so many rows; at least one."""
    step = min(MOST_ROWS, max(LEAST_ROWS, rows // USUAL_UNITS))
    yield from ((start, min(rows, start + step)) for start in range(0, max(rows, 1), step))


def read_manifest(
    storage: Storage,
    piece: Slice,
    notes: ShardNotes,
    limits: ImageLimits,
    columns: ParquetColumns,
    fetch: FetchSettings,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> Generator[Sample, None, None]:
    """Yield a sample per row, in order; the images of the next rows are fetched while one is used.

    An image that cannot be fetched gives a sample with status `unreachable` and the reason.

    Args:
        storage: The folder that the manifest's name is relative to.
        piece: The rows to read.
        notes: Filled while reading.
        limits: Limits on the size of an image.
        columns: What to read; `carried` of the samples are the values of `columns.added`.
        fetch: Limits of fetching.
        wanted: bool of shape (rows,), one for each row of the piece, in order: which rows are fetched and give a
            sample. None for all.

    Raises:
        StorageError: The manifest cannot be read, or has changed.
    """
    # These import an HTTP client, which other formats do not need.
    from pipeline.fetch.fetcher import Fetcher
    from pipeline.fetch.places import Places

    file = storage.open_random(piece.shard, expected=piece.planned)
    fetched = 0
    try:
        reader = _ManifestReader.opened(file, piece.shard, notes, limits, columns)
        if reader is None:
            return
        rows = chain.from_iterable(reader.rows(piece.start, piece.stop))
        planned = rows if piece.limit < 0 else islice(rows, piece.limit)
        todo = planned if wanted is None else compress(planned, wanted)
        with Fetcher(fetch, Places(storage, piece.shard, fetch), limits.max_image_bytes) as fetcher:
            # A row that has a status already is not fetched.
            wants = ((one, None if one.status is not None else one.carried[-2], one.carried_bytes) for one in todo)
            for sample, got in fetcher.in_order(wants):
                fetched += len(got.data or b"") if got else 0
                notes.bytes_read = file.bytes_read + fetched
                if got is not None:
                    carried = (*sample.carried[:-1], got.sha256)
                    sample = replace(sample, data=got.data, status=got.status, error=got.error, carried=carried)
                yield sample
        file.check_unchanged()
    finally:
        notes.bytes_read = file.bytes_read + fetched
        file.close()


class _ManifestReader(ParquetReader):
    """Reads one manifest; its samples still have to be fetched, except those that have a status.

    Raises:
        ValueError: Its footer claims too many rows; and as `ParquetReader`.
    """

    def __init__(
        self, file: RandomFile, shard: str, notes: ShardNotes, limits: ImageLimits, columns: ParquetColumns
    ) -> None:
        super().__init__(file, shard, notes, limits, columns)
        total_rows(self._parquet.metadata)

    def rows(self, start: int, stop: int) -> Iterator[list[Sample]]:
        """Yield the samples of rows `start` to `stop` of the file, batch by batch."""
        if self._key is not None and start > 0:
            self._meet_keys(start, stop)
        for index, rows, number in self._runs(start, stop):
            group = self._parquet.metadata.row_group(index)
            size = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            yield from self._row_group(index, rows, size, number, self._names, self._samples, self._notes)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, range, int]]:
        """Yield where rows are: a row group, which rows of it, and the number of its first row in the file."""
        metadata = self._parquet.metadata
        number = 0
        for index in range(metadata.num_row_groups):
            count = metadata.row_group(index).num_rows
            rows = range(max(0, start - number), count if stop < 0 else min(count, stop - number))
            if rows:
                yield index, rows, number
            number += count

    def _meet_keys(self, start: int, stop: int) -> None:
        """Note the keys before `start` that may clash with those of this piece, so that no key comes twice.

        A repeated key has the same number, in however many pieces a file is read.
        """
        here = [_plain_keys(keys) for keys, _ in self._key_column(start, stop)]
        if not here:
            return
        own = pa.concat_arrays(here).unique()
        for keys, first in _joined(self._key_column(0, start)):
            for row in np.flatnonzero(_may_clash(_plain_keys(keys), own)).tolist():
                self._unique_keys(pa.record_batch([keys.slice(row, 1)], [self._key]), first + row)

    def _key_column(self, start: int, stop: int) -> Iterator[tuple[pa.Array, int]]:
        """Yield the keys of rows, with the number of the first."""

        def keys_of(batch: pa.RecordBatch, number: int) -> tuple[pa.Array, int]:
            return batch.column(0), number

        assert self._key is not None
        for index, rows, number in self._runs(start, stop):
            yield from self._row_group(index, rows, _KEY_ROWS, number, [self._key], keys_of, ShardNotes())

    def _samples(self, batch: pa.RecordBatch, number: int) -> list[Sample]:
        values, each = self._values(batch)
        uris = list(texts(batch.column(self._image)))
        # Last, as in `ParquetReader`.
        keys = self._unique_keys(batch, number)
        return [self._sample(key, uri, row, each) for key, uri, row in zip(keys, uris, values, strict=True)]

    def _sample(
        self, named: tuple[str, str | None], found: tuple[str | None, int | None], row: tuple[Any, ...], each: int
    ) -> Sample:
        key, error = named
        uri, size = found
        status = None if error is None else "unsupported"
        if uri is None or not uri.strip():
            status, error = "empty", "the URI is null" if uri is None else "the URI is empty"
        elif error is None and (size is not None or len(uri) > MAX_KEY_BYTES // 4):
            uri, error = cut_key(uri, size)
            if error is not None:
                status, error = "unsupported", error.replace("key", "URI", 1)
        each += _DIGEST_BYTES + len(uri or "")
        return Sample(self._shard, key, None, status, error, carried=(*row, uri, None), carried_bytes=each)


def _joined(pieces: Iterator[tuple[pa.Array, int]]) -> Iterator[tuple[pa.Array, int]]:
    """Join consecutive keys: from a column with a large dictionary few rows are read at a time."""
    group: list[pa.Array] = []
    first = rows = 0
    for keys, number in pieces:
        if group and (rows >= _KEY_ROWS or number != first + rows):
            yield pa.concat_arrays(group), first
            group, rows = [], 0
        first = number if not group else first
        group.append(keys)
        rows += len(keys)
    if group:
        yield pa.concat_arrays(group), first


def _plain_keys(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def _may_clash(keys: pa.Array, own: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell which keys may be, or become, one of `own`: those equal, numbered, cut, or made of the row's number."""
    plain = pc.replace_substring_regex(own, "(#[0-9]+)+$", "")
    masks = (
        pc.is_in(keys, value_set=own),
        pc.is_in(keys, value_set=plain),
        pc.match_substring_regex(keys, "#[0-9]+$"),
        pc.match_substring_regex(keys, "^row [0-9]+$"),
        pc.greater(pc.binary_length(keys), MAX_KEY_BYTES),
    )
    found: npt.NDArray[np.bool_] = keys.is_null().to_numpy(zero_copy_only=False)
    for mask in masks:
        found |= mask.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def count_rows(piece: Slice) -> int:
    """Return how many rows a piece of a manifest has, without reading it."""
    return max(0, piece.stop - piece.start)


def total_rows(metadata: pq.FileMetaData) -> int:
    """Return the rows of all row groups.

    Raises:
        ValueError: The footer claims more rows than MAX_MANIFEST_ROWS.
    """
    total: int = sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if not 0 <= total <= MAX_MANIFEST_ROWS:
        raise ValueError(f"the footer claims {total} rows; {MAX_MANIFEST_ROWS} are allowed")
    return total
