"""Which columns of a Parquet source are read: found in a schema or given as options, and checked before the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from models.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """Which columns are read. Picklable.

    Attributes:
        image: Holds the images; None if no file could be read: then each file's only candidate.
        key: Becomes the key; None for the row's number in its file.
        carried: Columns that are copied through.
        uri: Holds the images' URIs, in a manifest; it has no column of images.
    """

    image: str | None = None
    key: str | None = None
    carried: tuple[pa.Field, ...] = ()
    uri: str | None = None

    @property
    def added(self) -> tuple[pa.Field, ...]:
        """The columns that the output has beyond its own: those carried, and for a manifest MANIFEST_FIELDS."""
        return (*self.carried, *(() if self.uri is None else MANIFEST_FIELDS))


# Columns of a manifest's output: the URI as the manifest has it, for joins, and the SHA-256 of the fetched bytes in
# hex; null if nothing was fetched.
MANIFEST_FIELDS = (pa.field("uri", pa.string()), pa.field("content_sha256", pa.string()))
# The defaults.
ANY_COLUMNS = ParquetColumns()


def choose_columns(
    schema: pa.Schema,
    image: str | None,
    key: str | None,
    carry: Iterable[str],
    taken: Iterable[str] = (),
    *,
    uri: str | None = None,
) -> ParquetColumns:
    """Choose the columns by the first file's schema.

    Args:
        schema: Schema of the first readable file.
        image: The requested column, or None to find it.
        key: The requested column, or None for row numbers.
        carry: Columns to copy.
        taken: Names that the output uses itself.
        uri: The column of URIs, for a manifest.

    Raises:
        ConfigError: A column is missing or has an unsupported type; the message names it, and the columns there are.
    """
    if uri is not None:
        if not is_text(_field(schema, uri, "--uri-column").type):
            raise ConfigError(f"--uri-column {uri} holds {schema.field(uri).type}; URIs are strings")
        columns = ParquetColumns(uri=uri)
        taken = {*taken, *(field.name for field in MANIFEST_FIELDS)}
    else:
        columns = ParquetColumns(_image_column(schema, image))
    if key is not None and not is_key(_field(schema, key, "--key-column").type):
        kind = schema.field(key).type
        raise ConfigError(f"--key-column {key} holds {kind}; a key is a string or an integer")
    taken = set(taken)
    carried = []
    for name in carry:
        field = _field(schema, name, "--carry")
        if name in taken:
            raise ConfigError(f"--carry {name}: the output has a column of that name already")
        taken.add(name)
        carried.append(pa.field(name, _plain(field.type)))
    return replace(columns, key=key, carried=tuple(carried))


def _image_column(schema: pa.Schema, name: str | None) -> str:
    if name is not None:
        field = _field(schema, name, "--image-column")
        if not is_image(field.type):
            raise ConfigError(f"--image-column {name} holds {field.type}; images are binary, or a struct with `bytes`")
        return name
    candidates = [field.name for field in schema if is_image(field.type)]
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        raise ConfigError(f"several columns may hold the images: {', '.join(candidates)}; give --image-column")
    raise ConfigError(f"no column holds images (binary, or a struct with `bytes`); there are {listed(schema)}")


def _field(schema: pa.Schema, name: str, option: str) -> pa.Field:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        how = "there is no such column" if not places else f"there are {len(places)} such columns"
        raise ConfigError(f"{option} {name}: {how}; there are {listed(schema)}")
    return schema.field(places[0])


def listed(schema: pa.Schema) -> str:
    """Name the columns of a schema with their types, for an error."""
    shown = [f"{field.name} ({field.type})" for field in schema][:20]
    return ", ".join(shown)[:400] if shown else "no columns"


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_image(kind: pa.DataType) -> bool:
    """Tell whether a column may hold images: bytes, or a struct with `bytes`."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_key(kind: pa.DataType) -> bool:
    """Tell whether a column holds strings or integers."""
    return is_text(kind) or bool(pa.types.is_integer(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def may_repeat(kind: pa.DataType) -> bool:
    """Tell whether a row may hold several values of a column: a list, a map, or one inside a struct."""
    if pa.types.is_struct(kind):
        return any(may_repeat(field.type) for field in kind)
    return bool(pa.types.is_nested(kind))


def may_become(own: pa.DataType, first: pa.DataType) -> bool:
    """Tell whether a later file's column can be read as the first one's type, if its values allow it."""
    types = pa.types
    if own == first or types.is_null(own):
        return True
    if types.is_nested(own):
        return bool(own.id == first.id)  # writers name the fields of a list differently
    alike = (types.is_integer, types.is_floating, is_text, _is_bytes)
    return any(bool(kind(own) and kind(first)) for kind in alike)
