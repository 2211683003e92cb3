"""Merge relabelled rows of an earlier output with the rows that stay as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import SourceError
from pipeline.dest.finished import open_part
from pipeline.dest.writer import UnitWriter
from pipeline.storage.storage import Storage

MODEL_COLUMN = "model"
# Rows that are merged at a time; with 2,048 features they take 32 MB.
MERGE_ROWS = 4_096
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())

# Fewer rows if they are large: carried columns may hold anything.
MERGE_BYTES = 16 * 2**20

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Relabelling:
    """Which rows of an earlier output to relabel. Picklable. Row n of a part file is sample n of its unit.

    Attributes:
        old: The earlier output.
        where: An Arrow expression that is true for those rows; None for all.
        model: Value of the column `model` for relabelled rows.
        old_model: Its value for the other rows, if the earlier output has no such column.
    """

    old: Storage
    where: Any
    model: str
    old_model: str

    def wanted(self, part: str, size: int | None = None) -> BoolArray:
        """Return which rows of a part file of `size` bytes to relabel; bool of shape (rows,)."""
        with open_part(self.old, part, size) as file:
            fragment = _fragment(file)
            if self.where is None:
                return np.ones(fragment.metadata.num_rows, np.bool_)
            # Not a filter: it excludes row groups by statistics, which ignore NaN. In this thread, since several parts
            # are read at a time.
            table = fragment.scanner(columns={"wanted": self.where}, use_threads=False).to_table()
            return np.asarray(table["wanted"].fill_null(False).to_numpy(), np.bool_)

    def merge(self, part: str, schema: pa.Schema, labelled: Path | None, path: Path) -> UnitWriter:
        """Write a part file's rows, some of them replaced, with a column `model`; return the closed writer.

        Args:
            part: Name of the file in the earlier output.
            schema: Schema of the rows, without `model`.
            labelled: A local Parquet file of the new rows, in order, which is removed afterwards; None to copy all.
            path: The local file to write.

        Raises:
            SourceError: The new rows belong to other samples.
            StorageError: A file cannot be read or written.
        """
        try:
            wanted = None if labelled is None else self.wanted(part)
            new = _Rows(labelled, self.model)
            with open_part(self.old, part) as file, UnitWriter(path, with_model(schema)) as writer:
                for table in self._copied(file, wanted, new, part):
                    writer.write(_encoded(table, writer.schema))
            return writer
        finally:
            if labelled is not None:
                labelled.unlink(missing_ok=True)

    def _copied(self, file: Any, wanted: BoolArray | None, new: _Rows, part: str) -> Iterator[pa.Table]:  # noqa: ANN401
        """Yield the old rows with the new ones in their places."""
        start = 0
        for batch in _batches(pq.ParquetFile(file)):
            table = _plain(pa.Table.from_batches([batch]), self.old_model)
            here = None if wanted is None else wanted[start : start + len(table)]
            if here is not None and here.any():
                fresh = new.take(int(here.sum()))
                _check_keys(table.select(["shard", "key"]).filter(pa.array(here)), fresh, part)
                places = np.arange(len(table))
                places[here] = len(table) + np.arange(len(fresh))
                table = pa.concat_tables([table, fresh.select(table.column_names).cast(table.schema)]).take(places)
            yield table
            start += len(table)
        if new.take(1).num_rows:
            raise SourceError(f"{part}: SOURCE now gives more samples than the part has; {_ADVICE}")


_ADVICE = "it has changed since it was labelled: label it into another DEST, or exclude its shards with --where"


def with_model(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the column `model` at its end."""
    return schema.append(pa.field(MODEL_COLUMN, _DICTIONARY))


class _Rows:
    """The rows of a local Parquet file, in order; no rows for None."""

    def __init__(self, path: Path | None, model: str) -> None:
        self._batches = iter(()) if path is None else _batches(pq.ParquetFile(path))
        self._model = model
        self._left: list[pa.Table] = []

    def take(self, count: int) -> pa.Table:
        """Return the next `count` rows; fewer only at the end."""
        while sum(map(len, self._left)) < count and (batch := next(self._batches, None)) is not None:
            self._left.append(_plain(pa.Table.from_batches([batch]), self._model))
        if not self._left:
            return pa.table({"shard": pa.array([], pa.string())})
        table = pa.concat_tables(self._left)
        self._left = [table.slice(count)] if len(table) > count else []
        return table.slice(0, count)


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
    size = max(1, sum(group.total_byte_size for group in groups))
    rows = min(MERGE_ROWS, max(1, MERGE_BYTES * file.metadata.num_rows // size))
    yield from file.iter_batches(rows, use_threads=False)


def _plain(table: pa.Table, model: str) -> pa.Table:
    """Return rows without dictionaries, and with a column `model`."""
    if MODEL_COLUMN not in table.column_names:
        table = table.append_column(MODEL_COLUMN, pa.array([model] * len(table), pa.string()))
    return table.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema]))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type that Arrow's `take` supports."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(kind, kind)


def _encoded(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows in the types of a schema."""
    table = table.combine_chunks()
    columns = []
    for kind in schema:
        column = table[kind.name]
        if pa.types.is_dictionary(kind.type):
            column = column.dictionary_encode()
        columns.append(column.cast(kind.type))
    (batch,) = pa.Table.from_arrays(columns, schema=schema).combine_chunks().to_batches() or [
        pa.RecordBatch.from_pylist([], schema)
    ]
    return batch


def _check_keys(old: pa.Table, new: pa.Table, part: str) -> None:
    """Raise if the new rows do not belong to the samples of the old ones."""
    if len(new) < len(old):
        raise SourceError(f"{part}: SOURCE now gives fewer samples than the part has; {_ADVICE}")
    for name in old.column_names:
        if old[name] != new[name]:
            pairs = zip(old[name].to_pylist(), new[name].to_pylist(), strict=True)
            was, now = next(pair for pair in pairs if pair[0] != pair[1])
            raise SourceError(f"{part}: SOURCE now gives {name} {now} where it was {was}; {_ADVICE}")


def _fragment(file: pa.NativeFile) -> Any:  # noqa: ANN401 (pyarrow has no types)
    """Return a Parquet file as a dataset's fragment."""
    import pyarrow.dataset as ds  # imports pandas, which would cost every run 0.3 s at startup

    return ds.ParquetFileFormat().make_fragment(file)
