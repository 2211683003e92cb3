"""`read_shards`: SOURCE as a Ray Dataset, through a Ray Data datasource."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from os import PathLike
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext

from models.decode.decode import ImageLimits
from pipeline.config import SourceFormat, build_config
from pipeline.dest.plan import cut_units
from pipeline.dest.writer import STATUS_OK
from pipeline.operators.columns import SHARD_COLUMNS
from pipeline.sources.reader import ReadSettings, columns_of, fetch_settings, read_unit, slices
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import open_source
from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)

# Size of a block; Ray Data joins blocks that are smaller than its target.
BLOCK_BYTES = 16 * 2**20
BLOCK_ROWS = 1_024


def read_shards(  # noqa: PLR0913 (the options of the command)
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    format: str = "auto",
    image_column: str | None = None,
    uri_column: str | None = None,
    allow_private_hosts: bool = False,
    key_column: str | None = None,
    carry: Sequence[str] = (),
    max_image_bytes: int = 64 * 2**20,
    override_num_blocks: int | None = None,
) -> Dataset:
    """Read images as `shardlabel label` does, into columns `shard`, `key`, `bytes`, `status`, `error` and carried ones.

    The shards are listed now, and read when the dataset is consumed. The listing stays in the driver's memory, some 300
    bytes a shard (`run` keeps none). A sample that has no bytes to decode (an empty one, a link, one that is too large) is
    a row with null bytes, and its status and error say why; all others have status `ok`. Samples that a bad shard loses (a
    truncated tar, a Parquet file without a footer) have no row: a warning in the worker's log names the shard and the
    reason, and the rest is read. Storage that fails for longer than the retries fails the dataset's execution.

    Args:
        source: Files, folders, globs, brace ranges or @list.txt; local paths or URIs.
        format: auto, webdataset, parquet or images.
        image_column: Parquet: column that holds the images, if it is ambiguous.
        uri_column: Parquet: column that holds URIs of images, in place of images. The images are fetched, and columns `uri`
            and `content_sha256` are added. An image that cannot be fetched has status unreachable.
        allow_private_hosts: Whether these URIs may lead to hosts of private networks.
        key_column: Parquet: the column that becomes `key`; else the row's number.
        carry: Parquet: columns to copy.
        max_image_bytes: Larger images are not read, and are rows with status too_large.
        override_num_blocks: As in Ray Data's own readers.

    Raises:
        ConfigError: An option is invalid, or a column does not exist.
        SourceError: SOURCE is empty, or mixes formats.
        StorageError: The storage cannot be listed.
    """
    options = {"source": source, "format": format, "carry": carry, "image_column": image_column}
    more = {"key_column": key_column, "max_image_bytes": max_image_bytes, "uri_column": uri_column}
    more["allow_private_hosts"] = allow_private_hosts
    config = build_config({"output": "dataset", **options, **more})
    opened = open_source(config.source, config.format)
    columns = columns_of(opened, config, taken=SHARD_COLUMNS)
    limits = ImageLimits(max_image_bytes=config.max_image_bytes)
    pieces = slices(opened, manifests=uri_column is not None)
    units = list(cut_units(pieces, images=opened.format is SourceFormat.IMAGES))
    settings = ReadShards(opened.base, opened.format, limits, columns, fetch_settings(config))
    datasource = ShardsDatasource(settings, units)
    return ray.data.read_datasource(datasource, override_num_blocks=override_num_blocks)


class ReadShards(ReadSettings):
    """What a worker needs to read shards into blocks."""

    __slots__ = ()

    def schema(self) -> pa.Schema:
        """Return the Arrow schema of the blocks."""
        names = pa.dictionary(pa.int32(), pa.string())
        kinds = (names, pa.string(), pa.binary(), names, pa.string())
        return pa.schema([*zip(SHARD_COLUMNS, kinds, strict=True), *self.columns.added])

    def blocks(self, units: Sequence[Unit]) -> Iterator[pa.Table]:
        """Read units, in order, into blocks; see `in_blocks`."""
        schema = self.schema()
        for unit in units:
            for samples in in_blocks(read_unit(self, unit, _warn), BLOCK_ROWS):
                yield samples_table(samples, schema)


class ShardsDatasource(Datasource):  # type: ignore[misc]  # Ray is not typed
    """Shards as a Ray Data source: a read task for each unit, or for neighbours where there are more units than tasks.

    Args:
        settings: How to read.
        units: Shards, slices of large Parquet files, or groups of loose images.
    """

    def __init__(self, settings: ReadShards, units: Sequence[Unit]) -> None:
        super().__init__()
        self._settings = settings
        self._units = units

    def get_name(self) -> str:
        """Return the name of the read tasks."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Return the shards' size in bytes: images are compressed already."""
        return sum(unit.own_bytes for unit in self._units)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return the read tasks, in order; each has at least one unit."""
        count = min(max(1, parallelism), len(self._units))
        edges = [len(self._units) * i // count for i in range(count + 1)]
        return [self._task(self._units[start:stop], per_task_row_limit) for start, stop in pairwise(edges)]

    def _task(self, units: Sequence[Unit], row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(
            num_rows=None,
            size_bytes=sum(unit.own_bytes for unit in units),
            input_files=[piece.shard for unit in units for piece in unit.slices],
            exec_stats=None,
        )
        read = partial(self._settings.blocks, units)
        return ReadTask(read, metadata, schema=self._settings.schema(), per_task_row_limit=row_limit)


def _warn(shard: str, notes: ShardNotes) -> None:
    if notes.missing is not None:
        logger.warning("read_shards: not all of %s could be read: %s", shard, notes.missing)


def in_blocks(samples: Iterator[Sample], most_rows: int) -> Iterator[list[Sample]]:
    """Yield groups of up to `most_rows` samples; a group ends with the sample that makes it reach BLOCK_BYTES."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += len(sample.data or b"") + sample.carried_bytes
        if size >= BLOCK_BYTES or len(group) >= most_rows:
            yield group
            group, size = [], 0
    if group:
        yield group


def samples_table(samples: Sequence[Sample], schema: pa.Schema) -> pa.Table:
    """Return samples as a table with the schema of `ReadShards.schema`."""
    columns: list[list[Any]] = [
        [sample.shard for sample in samples],
        [sample.key for sample in samples],
        [sample.data for sample in samples],
        [STATUS_OK if sample.data is not None else sample.status or "empty" for sample in samples],
        [sample.error for sample in samples],
        *([sample.carried[place] for sample in samples] for place in range(len(schema) - len(SHARD_COLUMNS))),
    ]
    arrays = [column_of(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def column_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return Python values as a column."""
    # Arrow cannot make a dictionary with a given index type from Python values by itself.
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)
