"""The output's columns, and how labelled batches become a Parquet file that is published whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.calibration import Calibration
from models.errors import StorageError
from models.inference.predictions import Predictions
from pipeline.storage.retries import reason

STATUS_OK = "ok"
STATUSES = (STATUS_OK, "undecodable", "too_large", "unsupported", "empty", "unreachable")
# A reader that wants a few columns, or a part of a large unit, skips by row group.
ROW_GROUP_ROWS = 16_384
# Rows in one contiguous chunk; a row group is sixteen chunks.
CHUNK_ROWS = 1_024
# Chunks and row groups end earlier at these sizes: carried columns may hold anything. Writing a row group takes several
# times its size. With 2,048 features a row it has 12,288 rows.
CHUNK_BYTES = 16 * 2**20
ROW_GROUP_BYTES = 96 * 2**20
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
# Columns that every output has; `accepted`, embeddings and carried columns come after them.
NUM_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One sample before inference.

    Attributes:
        shard: URI of its shard, relative to SOURCE.
        key: Unique within the shard.
        status: One of STATUSES.
        error: Short text where status is not ok.
        width: Of the image as stored, pixels, where known.
        height: Of the image as stored, pixels, where known.
        carried: Values of the carried columns.
        carried_bytes: Approximate size of these values in bytes.
    """

    shard: str
    key: str
    status: str = STATUS_OK
    error: str | None = None
    width: int | None = None
    height: int | None = None
    carried: tuple[Any, ...] = ()
    carried_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Layout of the output beyond the fixed columns.

    Attributes:
        labels: Name of each class, by class index.
        metadata: For the Parquet file's own metadata: version, model, artifact, precision, decode mode, ...
        embedding_size: Features per image, or None without embeddings.
        carried: Fields of the carried columns.
        calibration: Decides `accepted`; None for an output without that column.
    """

    labels: tuple[str, ...]
    metadata: dict[str, str]
    embedding_size: int | None = None
    carried: tuple[pa.Field, ...] = ()
    calibration: Calibration | None = None

    def schema(self, more: dict[str, str] | None = None) -> pa.Schema:
        """Return the Arrow schema of the output, with `more` metadata of a single file."""
        fields = [
            pa.field("shard", _DICTIONARY),
            pa.field("key", pa.string()),
            pa.field("label", pa.string()),
            pa.field("label_id", pa.int32()),
            pa.field("score", pa.float32()),
            pa.field("top_labels", pa.list_(pa.string())),
            pa.field("top_ids", pa.list_(pa.int32())),
            pa.field("top_scores", pa.list_(pa.float32())),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("status", _DICTIONARY),
            pa.field("error", pa.string()),
        ]
        if self.calibration is not None:
            fields.append(pa.field("accepted", pa.bool_()))
        if self.embedding_size is not None:
            fields.append(pa.field("embedding", pa.list_(pa.float32(), self.embedding_size)))
        return pa.schema([*fields, *self.carried], metadata={**self.metadata, **(more or {})})


def build_batch(rows: Sequence[Row], predictions: Predictions, spec: OutputSpec, schema: pa.Schema) -> pa.RecordBatch:
    """Join rows with the predictions of those that are ok.

    Args:
        rows: All samples of the batch, in order.
        predictions: One row for each of `rows` whose status is ok, in the same order.
        spec: Layout of the output.
        schema: `spec.schema()`, built once.
    """
    ok = np.fromiter((row.status == STATUS_OK for row in rows), np.bool_, len(rows))
    index = np.full(len(rows), -1, np.int64)
    index[ok] = np.arange(int(ok.sum()))
    take = pa.array(index, mask=~ok)  # null where not ok: `take` then gives null
    ids, scores = predictions.label_ids, predictions.scores
    k = ids.shape[1]
    names = pa.array(spec.labels, pa.string()).take(pa.array(ids.reshape(-1)))
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * k)
    top = {
        "top_labels": pa.ListArray.from_arrays(offsets, names),
        "top_ids": pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1))),
        "top_scores": pa.ListArray.from_arrays(offsets, pa.array(scores.reshape(-1))),
    }
    columns: dict[str, pa.Array] = {
        "shard": pa.array([row.shard for row in rows], pa.string()).dictionary_encode(),
        "key": pa.array([row.key for row in rows], pa.string()),
        "label": names.take(pa.array(np.arange(len(ids)) * k)).take(take),
        "label_id": pa.array(np.ascontiguousarray(ids[:, 0])).take(take),
        "score": pa.array(np.ascontiguousarray(scores[:, 0])).take(take),
        **{name: values.take(take) for name, values in top.items()},
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "status": pa.array([row.status for row in rows], pa.string()).dictionary_encode(),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    if spec.calibration is not None:
        columns["accepted"] = pa.array(spec.calibration.accepts(ids[:, 0], scores[:, 0])).take(take)
    if spec.embedding_size is not None:
        assert predictions.embedding is not None
        flat = pa.array(predictions.embedding.reshape(-1), pa.float32())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, spec.embedding_size).take(take)
    for position, carried in enumerate(spec.carried):
        columns[carried.name] = pa.array([row.carried[position] for row in rows], carried.type)
    return pa.RecordBatch.from_arrays(
        [columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )


@dataclass(slots=True)
class UnitWriter:
    """Write a unit's rows to a temporary local file, and count them. The same rows give the same bytes in any batches.

    Use as a context manager: on an error the file is removed.

    Raises:
        StorageError: The file cannot be written.
    """

    path: Path
    schema: pa.Schema
    rows: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    _writer: Any = None
    _loose: list[pa.RecordBatch] = field(default_factory=list)  # fewer than CHUNK_ROWS rows together
    _chunks: list[pa.Table] = field(default_factory=list)  # less than a row group
    _chunk_rows: int = 0
    _chunk_bytes: int = 0

    def __enter__(self) -> UnitWriter:
        with self._naming_the_file():
            self._writer = pq.ParquetWriter(
                self.path,
                self.schema,
                compression="zstd",
                # Random floats do not repeat: a dictionary for them only costs time and space.
                use_dictionary=[
                    "shard",
                    "label",
                    "status",
                    "error",
                    "top_labels.list.element",
                    "top_ids.list.element",
                    "model",
                ],
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            try:
                self._cut(last=True)
                self._write_group()
                with self._naming_the_file():
                    self._writer.close()
            except BaseException:
                self._discard()
                raise
        else:
            self._discard()

    def _discard(self) -> None:
        # An error from closing a discarded file would hide why it is discarded.
        with suppress(OSError):
            self._writer.close()
        self.path.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch of any size."""
        self._loose.append(batch)
        self.rows += batch.num_rows
        for value in batch.column("status").value_counts():
            status = value["values"].as_py()
            self.statuses[status] = self.statuses.get(status, 0) + value["counts"].as_py()
        self._cut()

    def _cut(self, *, last: bool = False) -> None:
        """Cut loose rows into chunks, as long as there is a full one, and write full row groups."""
        while self._loose:
            table = pa.Table.from_batches(self._loose)
            size = _extra_bytes(table)
            if not last and table.num_rows < CHUNK_ROWS and size <= CHUNK_BYTES:
                return
            rows = CHUNK_ROWS
            # By halves, so that where a chunk ends depends on its rows alone, not on how many are loose.
            while size > CHUNK_BYTES and rows > 1:
                size = _extra_bytes(table.slice(0, rows)) if rows <= table.num_rows else size
                rows = rows // 2 if size > CHUNK_BYTES else rows
            self._loose = table.slice(rows).to_batches()
            self._chunks.append(_chunk(table.slice(0, rows)))
            self._chunk_rows += self._chunks[-1].num_rows
            self._chunk_bytes += size
            if self._chunk_rows >= ROW_GROUP_ROWS or self._chunk_bytes >= ROW_GROUP_BYTES:
                self._write_group()

    def _write_group(self) -> None:
        if self._chunks:
            table = pa.concat_tables(self._chunks).unify_dictionaries()
            with self._naming_the_file():
                self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            self._chunks, self._chunk_rows, self._chunk_bytes = [], 0, 0

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            self.path.unlink(missing_ok=True)
            raise StorageError(f"cannot write {self.path}: {reason(err)}") from err


def _extra_bytes(table: pa.Table) -> int:
    """Return the bytes of embeddings and carried columns: all but the columns that every output has."""
    return sum(map(_value_bytes, table.columns[NUM_COLUMNS:]))


def _value_bytes(column: pa.ChunkedArray) -> int:
    if not pa.types.is_dictionary(column.type) or pa.types.is_primitive(column.type.value_type):
        return int(column.combine_chunks().nbytes)
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(length).as_py() or 0 for length in lengths)


def _chunk(table: pa.Table) -> pa.Table:
    """Return rows in one piece, with dictionaries of these rows alone: both change the bytes of a file."""
    table = table.combine_chunks()
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            values = table.column(index).cast(column.type.value_type).dictionary_encode()
            table = table.set_column(index, column, values.cast(column.type))
    return table


def file_digest(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
