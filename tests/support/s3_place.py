"""A folder in the test server's bucket, and functions that read it like a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.decode.decode import ImageLimits
from pipeline.config import SourceFormat
from pipeline.sources.reader import ReadSettings, read_unit, slices
from pipeline.sources.sample import Sample
from pipeline.sources.source import Source, open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import Storage, open_storage
from tests.support.object_server import ObjectServer


@dataclass(frozen=True)
class Place:
    """A folder in the bucket, by its URI and by direct access without a proxy."""

    server: ObjectServer
    name: str

    @property
    def uri(self) -> str:
        return self.server.uri(self.name)

    @property
    def storage(self) -> Storage:
        return open_storage(self.uri)

    def put(self, name: str, content: bytes) -> None:
        self.server.put(f"{self.name}/{name}", content)

    def remove(self, name: str) -> None:
        self.server.delete(f"{self.name}/{name}")

    def names(self) -> list[str]:
        return [key.removeprefix(f"{self.name}/") for key in self.server.keys(f"{self.name}/")]


def read_settings(source: Storage, kind: SourceFormat, **options: Any) -> ReadSettings:
    """Return the settings for `read_unit`."""
    return ReadSettings(source, kind, **{"limits": ImageLimits(), **options})


def source_of(place: Place, *specs: str) -> Source:
    return open_source([f"{place.uri}/{spec}" for spec in specs] or [place.uri], SourceFormat.AUTO)


def read_all(source: Source, pieces: list[Slice] | None = None, **options: Any) -> list[Sample]:
    settings = read_settings(source.base, source.format, **options)
    unit = Unit(0, tuple(slices(source) if pieces is None else pieces))
    return list(read_unit(settings, unit, lambda shard, notes: None))
