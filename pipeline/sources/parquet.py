"""Read images from Parquet: a binary column, or the Hugging Face struct {bytes, path}; and the carried columns.

Memory: two record batches of about 8 MiB, or one image if that is larger, and a page of each column; never a whole row
group. That holds whatever a file claims: see `parquet_pages`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.decode.decode import ImageLimits
from models.errors import ConfigError
from pipeline.sources.parquet_columns import ParquetColumns, choose_columns, may_become, may_repeat
from pipeline.sources.parquet_pages import PageWatch
from pipeline.sources.sample import MAX_KEY_BYTES, Sample, ShardNotes, UniqueKeys, cut_key, too_large_error
from pipeline.storage.stored_file import RandomFile
from pipeline.storage.streams import one_ahead

# Larger files are several units, cut at row groups into pieces of about this size. Fixed: a plan depends on it.
PIECE_BYTES = 256 * 2**20
BATCH_BYTES = 8 * 2**20
MAX_BATCH_ROWS = 1024
# pyarrow takes up to 30 times a footer's size in memory. Ten thousand row groups of a few columns have 10 MB.
MAX_FOOTER_BYTES = 16 * 2**20
# Bytes read at a time from each column; without this pyarrow holds a whole row group's column.
_BUFFER_BYTES = 4 * 2**20
_PAGE_SLACK = 2**20
# Maximum number of rows to give after a refused page; a footer may claim any number.
_MAX_REFUSED_ROWS = MAX_BATCH_ROWS
# pyarrow's errors: ArrowInvalid is a ValueError, a broken page an OSError, invalid UTF-8 a ValueError.
UNREADABLE = (OSError, ValueError, pa.ArrowException, EOFError, MemoryError)


def open_parquet(file: RandomFile) -> pq.ParquetFile:
    """Open a file by its footer.

    Raises:
        StorageError: Storage failed.
        ValueError, OSError: It is not a readable Parquet file.
    """
    file.most = MAX_FOOTER_BYTES
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    except UNREADABLE:
        if file.failure is not None:
            raise file.failure from None
        raise
    finally:
        file.most = None


def row_group_pieces(
    metadata: pq.FileMetaData, most: int | None = None, groups: range | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of row groups of up to `most` bytes, in file order; at least one each."""
    most = PIECE_BYTES if most is None else most
    groups = range(metadata.num_row_groups) if groups is None else groups
    start, size = groups.start, 0
    for index in groups:
        # The size before compression, which hardly shrinks images. (The columns have the compressed size, but asking
        # pyarrow 26 for a column of a damaged footer can end the process.)
        own = metadata.row_group(index).total_byte_size
        if index > start and size + own > most:
            yield start, index
            start, size = index, 0
        size += own
    yield start, groups.stop


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

    `notes` records what cannot be read: a file without a footer gives nothing, a broken page costs the rest of its row
    group, and a file with another schema than the first gives nothing.

    Args:
        file: The Parquet file.
        shard: Its name in the rows.
        notes: Filled while reading.
        limits: Limits on the size of an image.
        columns: What to read.
        row_groups: First, and one past the last; -1 for all.
        prefetch: Whether to read the next batch while this one is used; for remote storage.

    Raises:
        StorageError: Storage failed, or the file changed while it was read.
    """
    reader = ParquetReader.opened(file, shard, notes, limits, columns)
    notes.bytes_read = file.bytes_read
    if reader is None:
        return
    try:
        batches = reader.batches(*row_groups)
        for samples in one_ahead(batches) if prefetch else batches:
            yield from samples
        file.check_unchanged()
    finally:
        notes.bytes_read = file.bytes_read


T = TypeVar("T")
Make = Callable[[pa.RecordBatch, int], T]
"""Builds a result from a batch, given the number of its first row in the file."""


class _RefusedPageError(ValueError):
    """A page of the image column claims too much, so the rest of its row group cannot be read."""


class ParquetReader:
    """An open file, whose columns are chosen.

    Args:
        file: The Parquet file.
        shard: Its name in the rows.
        notes: Filled while reading.
        limits: Limits on the size of an image.
        columns: What to read.

    Raises:
        ConfigError: It lacks a column, or has one of another type.
        StorageError: Storage failed.
        OSError, ValueError: It is not a readable Parquet file; see `UNREADABLE`.
    """

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
        chosen = choose_columns(schema, columns.image, columns.key, names, uri=columns.uri)
        for own, first in zip(chosen.carried, columns.carried, strict=True):
            if not may_become(own.type, first.type):
                raise ConfigError(f"{own.name} holds {own.type}, not {first.type} as in the first file")
        self._most_rows = MAX_BATCH_ROWS  # per batch
        # In a manifest, URIs take the place of the images.
        self._image, self._key, self._carried = chosen.uri or chosen.image, columns.key, columns.carried
        # Rows of a refused page of images become rows of the output only if no other columns are needed.
        self._keeps_refused = not columns.added
        self._names = list(dict.fromkeys(name for name in (self._image, self._key, *names) if name is not None))
        repeats = any(may_repeat(schema.field(name).type) for name in self._names)
        # Any image of an allowed size, with its length and levels, must be readable.
        self._watch = file.watch = PageWatch(limits.max_image_bytes + _PAGE_SLACK, repeats=repeats)

    @classmethod
    def opened(
        cls, file: RandomFile, shard: str, notes: ShardNotes, limits: ImageLimits, columns: ParquetColumns
    ) -> Self | None:
        """Open a file; if it cannot be read, note why, and return None."""
        try:
            return cls(file, shard, notes, limits, columns)
        except ConfigError as err:
            notes.lose(f"{err}; all its rows are missing")
        except UNREADABLE as err:
            notes.lose(f"unreadable Parquet: {words_of(err)}")
        return None

    def batches(self, start: int, stop: int) -> Iterator[list[Sample]]:
        """Yield the samples of row groups, batch by batch."""
        metadata = self._parquet.metadata
        number = 0
        for index in range(metadata.num_row_groups if stop < 0 else stop):
            group = metadata.row_group(index)
            rows, size = group.num_rows, max(1, group.total_byte_size)
            done = 0
            if index >= start:
                batch_rows = max(1, min(self._most_rows, BATCH_BYTES * rows // size))
                try:
                    for samples in self._row_group(
                        index, range(rows), batch_rows, number, self._names, self._samples, self._notes
                    ):
                        done += len(samples)
                        yield samples
                except _RefusedPageError as err:
                    yield self._refused(index, range(done, rows), number, str(err))
                    done = rows
            if self._key is not None and done < rows:
                # Read only the keys of rows before `start`, and of lost rows: a repeated key has the same number, in
                # however many pieces the file is read.
                left, key, unseen = range(done, rows), [self._key], ShardNotes()
                deque(self._row_group(index, left, MAX_BATCH_ROWS, number, key, self._unique_keys, unseen), 0)
            number += rows

    def _row_group(
        self, index: int, rows: range, size: int, number: int, names: list[str], make: Make[T], notes: ShardNotes
    ) -> Iterator[T]:
        """Yield what `make` returns for each batch of a row group, whose first row is number `number` of the file."""
        done = rows.start
        while done < rows.stop:
            try:
                for whole in self._read(index, done, size, names):
                    batch = whole.slice(0, rows.stop - done)
                    made = make(batch, number + done)
                    done += batch.num_rows
                    yield made
                    if done == rows.stop:
                        return
                break
            except UNREADABLE as err:
                if self._file.failure is not None:
                    raise self._file.failure from None
                if size > 1:
                    # Retry with as many rows as fit in memory, or row by row up to the broken one.
                    if self._watch.fitting_rows < size:
                        # Later row groups are alike, and so begin with this size.
                        size = self._most_rows = self._watch.fitting_rows
                    else:
                        size = 1
                    continue
                lost = rows.stop - done
                if self._watch.refused and names == self._names and self._keeps_refused and lost <= _MAX_REFUSED_ROWS:
                    raise _RefusedPageError(self._watch.refused) from None
                notes.lose(f"row group {index}: the last {lost} of {len(rows)} rows cannot be read: {words_of(err)}")
                return
        if done < rows.stop:
            notes.lose(f"row group {index}: {rows.stop - done} of {len(rows)} rows are not there")

    def _refused(self, index: int, left: range, number: int, error: str) -> list[Sample]:
        """Return the remaining rows of a row group as `too_large`: the page of their images must not be unpacked."""
        keys: list[tuple[str, str | None]] = [(str(number + row), None) for row in left]
        if self._key is not None:
            try:
                batches = list(self._read(index, left.start, len(left), [self._key]))
            except UNREADABLE as err:
                if self._file.failure is not None:
                    raise self._file.failure from None
                self._notes.lose(f"row group {index}: the last {len(left)} rows cannot be read: {words_of(err)}")
                return []
            keys, row = [], number + left.start
            for batch in batches:
                keys += self._unique_keys(batch, row)
                row += batch.num_rows
        return [Sample(self._shard, key, None, "too_large", error) for key, _ in keys]

    def _read(self, index: int, skip: int, size: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        self._watch.begin(size)
        batches = self._parquet.iter_batches(size, row_groups=[index], columns=names, use_threads=False)
        for batch in batches:
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield batch.slice(skip)
            skip = 0

    def _samples(self, batch: pa.RecordBatch, number: int) -> list[Sample]:
        values, each = self._values(batch)
        images = list(column_images(batch.column(self._image), self._limits))
        # Last, as nothing may fail after it: rows that are read again would find their own keys.
        keys = self._unique_keys(batch, number)
        return [
            Sample(
                self._shard,
                key,
                *(image if error is None else (None, "unsupported", error)),
                carried=row,
                carried_bytes=each,
            )
            for (key, error), image, row in zip(keys, images, values, strict=True)
        ]

    def _values(self, batch: pa.RecordBatch) -> tuple[list[tuple[Any, ...]], int]:
        """Return the carried values of each row, and their approximate bytes per row."""
        if not self._carried:
            return [()] * batch.num_rows, 0
        columns = [_carried(batch.column(field.name), field.type) for field in self._carried]
        values = list(zip(*(column.to_pylist() for column in columns), strict=True))
        return values, sum(column.nbytes for column in columns) // max(1, batch.num_rows)

    def _unique_keys(self, batch: pa.RecordBatch, number: int) -> list[tuple[str, str | None]]:
        """Return the key of each row, and an error if it was cut."""
        if self._key is None:
            return [(str(number + row), None) for row in range(batch.num_rows)]
        keys: list[tuple[str, str | None]] = []
        for row, (text, size) in enumerate(texts(batch.column(self._key))):
            key, error = (f"row {number + row}", None) if text is None else cut_key(text, size)
            keys.append((self._keys.unique(key), error))
        return keys


def column_images(
    column: pa.Array | pa.ChunkedArray, limits: ImageLimits
) -> Iterator[tuple[bytes | None, str | None, str | None]]:
    """Yield (data, status, error) of each row of a column of bytes, or of structs with `bytes`."""
    paths: list[Any] = [None] * len(column)
    if pa.types.is_struct(column.type):
        children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        column = children["bytes"]
        if "path" in children and pa.types.is_string(children["path"].type):
            paths = children["path"]
    for data, path in zip(_buffers(column), paths, strict=True):
        if data is not None and data.size > limits.max_image_bytes:
            yield None, "too_large", too_large_error(data.size, limits)
        elif data is not None:
            yield data.to_pybytes(), None, None
        elif path is not None and path.is_valid and path.as_buffer().size:
            yield None, "unsupported", "the image is a path, not bytes"
        else:
            yield None, "empty", "the image is null"


def _buffers(column: pa.Array) -> Iterator[pa.Buffer | None]:
    """Yield the bytes of strings or binary values, without copying them."""
    coded = pa.types.is_dictionary(column.type)
    for value in column:
        yield (value.value if coded else value).as_buffer() if value.is_valid else None


def texts(column: pa.Array) -> Iterator[tuple[str | None, int | None]]:
    """Yield strings or integers as text; invalid UTF-8 stays visible, as in names of tar members.

    For a text that is too long for a key, yield its beginning, and how many bytes it has.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        yield from ((None if value is None else str(value), None) for value in column.to_pylist())
        return
    for data in _buffers(column):
        if data is None:
            yield None, None
        else:
            size = data.size
            text = data.slice(0, min(size, MAX_KEY_BYTES)).to_pybytes().decode("utf-8", "backslashreplace")
            yield text, size if size > MAX_KEY_BYTES else None


def _carried(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(kind):
        kind = kind.value_type  # of which only the values are passed on
    if column.type != kind:
        column = pc.cast(column, kind)  # safe: raises rather than change a value
    if kind == pa.time64("ns"):
        column = column.cast(pa.int64())  # a Python time has no nanoseconds; Arrow takes the number
    return column


def words_of(err: BaseException) -> str:
    """Return pyarrow's error as one short line."""
    return " ".join(str(err).split())[:200] or type(err).__name__
