"""Images with their true class, from any source: `.cls` or `.json` members, a Parquet column, a folder's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from models.decode.decode import ImageLimits
from models.errors import ConfigError, SourceError
from models.labels import ClassFinder
from pipeline.config import SourceFormat
from pipeline.sources.images import read_images
from pipeline.sources.parquet import open_parquet, read_parquet
from pipeline.sources.parquet_columns import ParquetColumns, choose_columns
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import InputFile, Source, open_source
from pipeline.sources.unit import Slice
from pipeline.sources.webdataset import read_webdataset
from pipeline.storage.storage import Storage

# Tried in this order, as keys of a .json member and as columns of a Parquet file.
LABEL_FIELDS = ("label_id", "class_id", "class_index", "cls", "label", "labels", "class", "wnid", "synset")
_SCHEMA_TRIES = 16


@dataclass(slots=True)
class LabelledSource:
    """SOURCE, read as pairs of a sample and its class index.

    Attributes:
        source: Where the images are.
        finder: Knows the classes of the model.
        label_field: Key or column that holds the class; None to look for the usual ones.
        image_column: Of Parquet; None to find it.
        limits: On an image.
        without_label: Samples passed over so far, since nothing says what they show.
        incomplete: Shards that lost something so far, and what.
    """

    source: Source
    finder: ClassFinder
    label_field: str | None
    image_column: str | None
    limits: ImageLimits
    without_label: int = 0
    incomplete: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Sample, int]]:
        """Yield samples with their class.

        Raises:
            SourceError: A class is none of the model's, or SOURCE cannot be read as it is.
            StorageError: Storage failed.
        """
        for sample, text in self._samples():
            if text is None:
                self.without_label += 1
                continue
            index = self.finder.find(text)
            if index is None:
                raise SourceError(f"{sample.shard}: class of {sample.key}: {self.finder.explain(text)}")
            yield sample, index

    def _samples(self) -> Iterator[tuple[Sample, str | None]]:
        base, kind = self.source.base, self.source.format
        if kind is SourceFormat.IMAGES:
            if self.label_field is not None:
                raise ConfigError("--label-field is for .json members and Parquet; of loose images the folder tells")
            pieces = (Slice(file.shard, file.size, file.etag) for file in self.source.files())
            for sample in read_images(base, pieces, ShardNotes(), self.limits):
                yield sample, _folder_name(base, sample)
        elif kind is SourceFormat.PARQUET:
            columns, names = _columns(self.source, self.image_column, self.label_field)
            yield from self._parquet(columns, None if names is None or self._same_order(names) else names)
        else:
            yield from self._webdataset()

    def _fetchable(self) -> Iterator[InputFile]:
        for file in self.source.files():
            if why := self.source.base.unreadable(file.shard):
                self.incomplete.append(f"{file.shard}: {why}")
            else:
                yield file

    def _webdataset(self) -> Iterator[tuple[Sample, str | None]]:
        for file in self._fetchable():
            notes = ShardNotes()
            with self.source.base.open_stream(file.shard) as stream:
                for sample in read_webdataset(stream, file.shard, notes, self.limits, beside=True):
                    yield sample, _member_label(sample, self.label_field)
            self._note(file, notes)

    def _parquet(self, columns: ParquetColumns, names: list[str] | None) -> Iterator[tuple[Sample, str | None]]:
        for file in self._fetchable():
            notes = ShardNotes()
            with closing(self.source.base.open_random(file.shard)) as random:
                for sample in read_parquet(random, file.shard, notes, self.limits, columns):
                    value = sample.carried[0]
                    yield sample, None if value is None else _named(value, names)
            self._note(file, notes)

    def _same_order(self, names: list[str]) -> bool:
        """Tell whether a data set numbers its classes as the model does, as far as their names tell."""
        if len(names) != len(self.finder.classes):
            return False
        return all(self.finder.find(name) in (None, index) for index, name in enumerate(names))

    def _note(self, file: InputFile, notes: ShardNotes) -> None:
        if notes.missing is not None:
            self.incomplete.append(f"{file.shard}: {notes.missing}")


def open_labelled(
    specs: tuple[str, ...],
    wanted: SourceFormat,
    finder: ClassFinder,
    *,
    label_field: str | None = None,
    image_column: str | None = None,
) -> LabelledSource:
    """Open SOURCE for reading with labels.

    Args:
        specs: As for `label`.
        wanted: Format, or AUTO.
        finder: Knows the classes of the model.
        label_field: Key of .json members, or column of Parquet.
        image_column: Of Parquet.

    Raises:
        SourceError: Nothing is there, or formats are mixed.
    """
    return LabelledSource(open_source(specs, wanted), finder, label_field, image_column, ImageLimits())


def _member_label(sample: Sample, label_field: str | None) -> str | None:
    """Return what the members beside an image say: `.cls` first, unless a field of `.json` is asked for."""
    if label_field is None and "cls" in sample.beside:
        return sample.beside["cls"].decode("utf-8", "replace").strip()
    content = sample.beside.get("json")
    if content is None:
        return None
    try:
        values = json.loads(content)
    except ValueError as err:
        raise SourceError(f"{sample.shard}: {sample.key}.json is no JSON: {err}") from err
    if not isinstance(values, dict):
        raise SourceError(f"{sample.shard}: {sample.key}.json must be an object, got {type(values).__name__}")
    for name in (label_field,) if label_field else LABEL_FIELDS:
        value = values.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return None


def _folder_name(base: Storage, sample: Sample) -> str:
    """Return the name of the folder that an image lies in."""
    folder = sample.shard if sample.shard != "." else base.uri.rstrip("/")
    return folder.rpartition("/")[2]


def _columns(source: Source, image: str | None, label: str | None) -> tuple[ParquetColumns, list[str] | None]:
    """Settle the columns, by the first file that can be read, and what a class index there is called.

    Raises:
        ConfigError: No column can be the label.
        SourceError: No file can be read.
    """
    for file in islice(source.fetchable(), _SCHEMA_TRIES):
        with suppress(OSError, ValueError), closing(source.base.open_random(file.shard)) as random:
            schema = open_parquet(random).schema_arrow
            name = label or next((one for one in LABEL_FIELDS if one in schema.names), None)
            if name is None:
                have = ", ".join(schema.names[:20])
                raise ConfigError(f"no column of {file.shard} holds the classes; name it with --label-field ({have})")
            chosen = choose_columns(schema, image, None, (name,))
            _check_type(chosen.carried[0])
            return chosen, _huggingface_names(schema, name)
    raise SourceError(f"none of the first {_SCHEMA_TRIES} Parquet files can be read")


def _check_type(column: pa.Field) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ConfigError(f"--label-field {column.name} holds {column.type}; a class is an integer or a string")


def _huggingface_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the class names that a Hugging Face data set keeps of an integer column, by its own index."""
    with suppress(ValueError, KeyError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return [str(name) for name in names]
    return None


def _named(value: Any, names: list[str] | None) -> str:  # noqa: ANN401 (a cell)
    """Return a cell as text; an index of a data set that has names of its own becomes its name there."""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)
