"""Read images from Parquet: a binary column, or the Hugging Face struct {bytes, path}; and carry columns along.

Memory: two record batches of about 8 MiB, or one image where that is more; never a whole row group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.decode import ImageLimits
from models.errors import ConfigError
from pipeline.parquet_columns import ParquetColumns, choose_columns, may_become
from pipeline.samples import Sample, ShardNotes, UniqueKeys, too_large_error
from pipeline.stored_file import RandomFile
from pipeline.streams import one_ahead

# Larger files are several units, cut at row groups into pieces of about this size. Fixed: a plan depends on it.
PIECE_BYTES = 256 * 2**20
BATCH_BYTES = 8 * 2**20
MAX_BATCH_ROWS = 1024
# Read at a time of each column; without it pyarrow holds a whole row group's column.
_BUFFER_BYTES = 4 * 2**20
# pyarrow's errors: ArrowInvalid is a ValueError, a broken page an OSError, a string that is no UTF-8 a ValueError.
_UNREADABLE = (OSError, ValueError, pa.ArrowException, EOFError, MemoryError)


def open_parquet(file: RandomFile) -> pq.ParquetFile:
    """Open a file by its footer.

    Raises:
        StorageError: Storage failed.
        ValueError, OSError: It is no Parquet that can be read.
    """
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    except _UNREADABLE:
        if file.failure is not None:
            raise file.failure from None
        raise


def row_group_pieces(metadata: pq.FileMetaData) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of row groups of up to PIECE_BYTES, as they lie in the file; at least one each."""
    start, size = 0, 0
    for index in range(metadata.num_row_groups):
        # Before compression, which images know little of. (The sizes of columns tell it after; but asking pyarrow 26
        # for a column of a damaged footer can end the process.)
        own = metadata.row_group(index).total_byte_size
        if index > start and size + own > PIECE_BYTES:
            yield start, index
            start, size = index, 0
        size += own
    yield start, metadata.num_row_groups


def read_parquet(
    file: RandomFile,
    shard: str,
    notes: ShardNotes,
    limits: ImageLimits,
    columns: ParquetColumns,
    row_groups: tuple[int, int] = (0, -1),
    *,
    prefetch: bool = False,
) -> Iterator[Sample]:
    """Yield a sample per row, in the file's order.

    What cannot be read is told in `notes`: a file without a footer gives nothing, a broken page costs the rest of its
    row group, and a file of another schema than the first gives nothing.

    Args:
        file: The Parquet file.
        shard: Its name in the rows.
        notes: Filled while reading.
        limits: On the size of an image.
        columns: What to read.
        row_groups: First, and one behind the last; -1 for all.
        prefetch: Whether to read the next batch while this one is used; for remote storage.

    Raises:
        StorageError: Storage failed, or the file changed while it was read.
    """
    try:
        reader = _Reader(file, shard, notes, limits, columns)
    except ConfigError as err:
        notes.lose(f"{err}; all its rows are missing")
        return
    except _UNREADABLE as err:
        notes.lose(f"unreadable Parquet: {_words(err)}")
        return
    finally:
        notes.bytes_read = file.bytes_read
    try:
        batches = reader.batches(*row_groups)
        for samples in one_ahead(batches) if prefetch else batches:
            yield from samples
        file.check_unchanged()
    finally:
        notes.bytes_read = file.bytes_read


class _Reader:
    """One file, open, with its columns settled."""

    def __init__(
        self, file: RandomFile, shard: str, notes: ShardNotes, limits: ImageLimits, columns: ParquetColumns
    ) -> None:
        self._file = file
        self._parquet = open_parquet(file)
        self._shard = shard
        self._notes = notes
        self._limits = limits
        self._keys = UniqueKeys()
        schema = self._parquet.schema_arrow
        names = [field.name for field in columns.carried]
        chosen = choose_columns(schema, columns.image, columns.key, names)
        for own, first in zip(chosen.carried, columns.carried, strict=True):
            if not may_become(own.type, first.type):
                raise ConfigError(f"{own.name} holds {own.type}, not {first.type} as in the first file")
        self._image, self._key, self._carried = chosen.image, columns.key, columns.carried
        self._names = list(dict.fromkeys(name for name in (self._image, self._key, *names) if name is not None))

    def batches(self, start: int, stop: int) -> Iterator[list[Sample]]:
        """Yield the samples of row groups, batch by batch."""
        metadata = self._parquet.metadata
        number = sum(metadata.row_group(index).num_rows for index in range(start))
        for index in range(start, metadata.num_row_groups if stop < 0 else stop):
            group = metadata.row_group(index)
            rows, size = group.num_rows, max(1, group.total_byte_size)
            batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // size))
            yield from self._row_group(index, number, rows, batch_rows)
            number += rows

    def _row_group(self, index: int, number: int, rows: int, size: int) -> Iterator[list[Sample]]:
        done = 0
        while done < rows:
            try:
                for batch in self._read(index, done, size):
                    samples = self._samples(batch, number + done)
                    done += len(samples)
                    yield samples
                break
            except _UNREADABLE as err:
                if self._file.failure is not None:
                    raise self._file.failure from None
                if size > 1:
                    size = 1  # once more, row by row, up to the broken one
                    continue
                lost = rows - done
                self._notes.lose(f"row group {index}: the last {lost} of {rows} rows cannot be read: {_words(err)}")
                return
        if done < rows:
            self._notes.lose(f"row group {index}: {rows - done} of {rows} rows are not there")

    def _read(self, index: int, skip: int, size: int) -> Iterator[pa.RecordBatch]:
        batches = self._parquet.iter_batches(size, row_groups=[index], columns=self._names, use_threads=False)
        for batch in batches:
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield batch.slice(skip)
            skip = 0

    def _samples(self, batch: pa.RecordBatch, number: int) -> list[Sample]:
        rows = batch.num_rows
        images = column_images(batch.column(self._image), self._limits)
        keys = [str(number + row) for row in range(rows)]
        if self._key is not None:
            found = _texts(batch.column(self._key))
            keys = [f"row {key}" if text is None else text for key, text in zip(keys, found, strict=True)]
            keys = [self._keys.unique(key) for key in keys]
        carried = [_carried(batch.column(field.name), field.type) for field in self._carried]
        values = zip(*carried, strict=True) if carried else iter([()] * rows)
        return [
            Sample(self._shard, key, *image, carried=row) for key, image, row in zip(keys, images, values, strict=True)
        ]


def column_images(
    column: pa.Array | pa.ChunkedArray, limits: ImageLimits
) -> Iterator[tuple[bytes | None, str | None, str | None]]:
    """Yield (data, status, error) of each row of a column of bytes, or of structs with `bytes`."""
    paths: list[str | None] = [None] * len(column)
    if pa.types.is_struct(column.type):
        children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        column = children["bytes"]
        if "path" in children and pa.types.is_string(children["path"].type):
            paths = _texts(children["path"])
    for data, path in zip(column.to_pylist(), paths, strict=True):
        if data is not None and len(data) > limits.max_image_bytes:
            yield None, "too_large", too_large_error(len(data), limits)
        elif data is None and path:
            yield None, "unsupported", "the image is a path, not bytes"
        elif data is None:
            yield None, "empty", "the image is null"
        else:
            yield data, None, None


def _texts(column: pa.Array) -> list[str | None]:
    """Return strings or integers as text; what is no UTF-8 stays visible, as in names of tar members."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    values = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "backslashreplace") for value in values]


def _carried(column: pa.Array, kind: pa.DataType) -> list[Any]:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(kind):
        kind = kind.value_type  # of which only the values are passed on
    if column.type != kind:
        column = pc.cast(column, kind)  # safe: raises rather than change a value
    if kind == pa.time64("ns"):
        column = column.cast(pa.int64())  # a Python time has no nanoseconds; Arrow takes the number
    return list(column.to_pylist())


def _words(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
