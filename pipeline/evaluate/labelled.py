"""Images with their true class, from any source: `.cls` or `.json` members, a Parquet column, or the folder's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from models.decode.decode import ImageLimits
from models.errors import ConfigError, SourceError
from models.labels import ClassFinder
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.plan import cut_units
from pipeline.sources.parquet_columns import ANY_COLUMNS, ParquetColumns, choose_columns, is_key
from pipeline.sources.reader import SCHEMA_TRIES, ReadSettings, first_schema, read_unit, slices
from pipeline.sources.sample import Sample, ShardNotes
from pipeline.sources.source import Source, open_source
from pipeline.storage.storage import Storage

# Keys of a .json member or columns of a Parquet file, tried in this order.
LABEL_FIELDS = ("label_id", "class_id", "class_index", "cls", "label", "labels", "class", "wnid", "synset")


@dataclass(slots=True)
class LabelledSource:
    """SOURCE, read as pairs of a sample and its class index.

    Attributes:
        config: Says what SOURCE is, and which column of Parquet has the images.
        finder: Finds the model's classes.
        label_field: Key of .json members or column of Parquet that has the class; None to try the usual ones.
        without_label: Samples skipped so far because SOURCE gives no class for them.
        incomplete: Shards that could not be read completely so far, with the reason.

    Raises:
        SourceError: SOURCE is empty, or mixes formats.
    """

    config: LabelConfig
    finder: ClassFinder
    label_field: str | None = None
    without_label: int = 0
    incomplete: list[str] = field(default_factory=list)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        self.source = open_source(self.config.source, self.config.format)

    def __iter__(self) -> Iterator[tuple[Sample, int]]:
        """Yield samples with their class.

        Raises:
            SourceError: A class is not one of the model's, or SOURCE cannot be read.
            StorageError: Storage failed.
        """
        base, kind = self.source.base, self.source.format
        columns = ANY_COLUMNS
        text_of: Callable[[Sample], str | None] = self._member_label
        hint = ""
        if kind is SourceFormat.PARQUET:
            columns, text_of = self._of_parquet()
        elif kind is SourceFormat.IMAGES:
            if self.label_field is not None:
                raise ConfigError("--label-field is for .json members and Parquet; loose images use the folder's name")
            text_of = partial(_folder_name, base)
            hint = "; the folder of a loose image names its class"
        settings = ReadSettings(base, kind, ImageLimits(), columns, beside=True)
        for unit in cut_units(slices(self.source), images=kind is SourceFormat.IMAGES):
            for sample in read_unit(settings, unit, self._note):
                text = text_of(sample)
                if text is None:
                    self.without_label += 1
                    continue
                index = self.finder.find(text)
                if index is None:
                    where = sample.key if kind is SourceFormat.IMAGES else f"{sample.key} in {sample.shard}"
                    raise SourceError(f"the class of {where} is unknown: {self.finder.explain(text)}{hint}")
                yield sample, index

    def _note(self, shard: str, notes: ShardNotes) -> None:
        if notes.missing is not None:
            self.incomplete.append(f"{shard}: {notes.missing}")

    def _of_parquet(self) -> tuple[ParquetColumns, Callable[[Sample], str | None]]:
        """Choose the columns, from the first file that can be read, and how a cell names a class."""
        schema = first_schema(self.source)
        if schema is None:
            raise SourceError(f"none of the first {SCHEMA_TRIES} Parquet files can be read")
        name = self.label_field or next((one for one in LABEL_FIELDS if one in schema.names), None)
        if name is None:
            have = ", ".join(schema.names[:20])
            raise ConfigError(f"no column has the classes; name it with --label-field ({have})")
        columns = choose_columns(schema, self.config.image_column, None, (name,))
        if not is_key(kind := columns.carried[0].type):
            raise ConfigError(f"--label-field {name} holds {kind}; a class is an integer or a string")
        names = _huggingface_names(schema, name) or []
        if self._same_order(names):
            names = []

        def text_of(sample: Sample) -> str | None:
            value = sample.carried[0]
            if isinstance(value, int) and 0 <= value < len(names):
                return names[value]
            return None if value is None else str(value)

        return columns, text_of

    def _same_order(self, names: list[str]) -> bool:
        """Tell whether a data set numbers its classes as the model does, as far as their names show."""
        if len(names) != len(self.finder.classes):
            return False
        return all(self.finder.find(name) in (None, index) for index, name in enumerate(names))

    def _member_label(self, sample: Sample) -> str | None:
        """Return the class in the members beside an image: `.cls` first, unless a field of `.json` is requested."""
        if self.label_field is None and "cls" in sample.beside:
            return sample.beside["cls"].decode("utf-8", "replace").strip()
        content = sample.beside.get("json")
        if content is None:
            return None
        try:
            values = json.loads(content)
        except ValueError as err:
            raise SourceError(f"{sample.shard}: {sample.key}.json is not JSON: {err}") from err
        if not isinstance(values, dict):
            raise SourceError(f"{sample.shard}: {sample.key}.json must be an object, got {type(values).__name__}")
        found = (values.get(name) for name in ((self.label_field,) if self.label_field else LABEL_FIELDS))
        return next((str(one) for one in found if isinstance(one, str | int) and not isinstance(one, bool)), None)


def _folder_name(base: Storage, sample: Sample) -> str:
    folder = sample.shard if sample.shard != "." else base.uri.rstrip("/")
    return folder.rpartition("/")[2]


def _huggingface_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the class names that a Hugging Face data set stores for an integer column, by class index."""
    with suppress(ValueError, KeyError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return [str(name) for name in names]
    return None
