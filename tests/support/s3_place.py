"""A folder of the test server's bucket, and reading what is in it as a run does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.decode.decode import ImageLimits
from pipeline.config import SourceFormat
from pipeline.sources.parquet_columns import ANY_COLUMNS, ParquetColumns
from pipeline.sources.reader import read_unit, slices
from pipeline.sources.sample import Sample
from pipeline.sources.source import Source, open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage, open_storage
from tests.support.s3_server import (
    DIR_CACHE_S,
)


@dataclass
class Place:
    """A folder of the bucket: through S3, and as it lies on disk."""

    uri: str
    folder: Path
    changed: float = 0.0

    @property
    def storage(self) -> Storage:
        self.settle()
        return open_storage(self.uri)

    def put(self, name: str, content: bytes) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)
        self.changed = time.monotonic()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()
        self.changed = time.monotonic()

    def settle(self) -> None:
        """Wait until the server sees what was done to its folder."""
        time.sleep(max(0.0, self.changed + 1.5 * DIR_CACHE_S - time.monotonic()))


@dataclass(frozen=True)
class Settings:
    """What `read_unit` asks of its settings."""

    source: Storage
    format: SourceFormat
    limits: ImageLimits = ImageLimits()  # noqa: RUF009 (frozen)
    columns: ParquetColumns = ANY_COLUMNS


def source_of(place: Place, *specs: str) -> Source:
    place.settle()
    return open_source([f"{place.uri}/{spec}" for spec in specs] or [place.uri], SourceFormat.AUTO)


def read_all(source: Source, pieces: list[Slice] | None = None, **options: Any) -> list[Sample]:
    settings = Settings(source.base, source.format, **options)
    unit = Unit(0, tuple(slices(source) if pieces is None else pieces))
    return list(read_unit(settings, unit, lambda shard, notes: None))
