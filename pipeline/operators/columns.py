"""Which columns labelling takes from a dataset, and which it adds; checked before any image is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from models.errors import ConfigError
from pipeline.dest.writer import OutputSpec
from pipeline.sources.parquet_columns import is_image, is_text, listed

# Columns of `read_shards`: the last two say why a row could not be read.
SHARD_COLUMNS = ("shard", "key", "bytes", "status", "error")
# Pixels on the way from decoding to inference: uint8 [height, width, 3].
PIXELS = "_shardlabel_pixels"
_ADOPTED = ("status", "error")


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The columns of one call of `label`. Picklable.

    Attributes:
        image: Name of the column that holds the images.
        prefix: Prefix of the name of each added column.
        embeddings: Whether there is an `embedding` column.
        calibrated: Whether there is an `accepted` column.
    """

    image: str
    prefix: str = ""
    embeddings: bool = False
    calibrated: bool = False

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the columns that are added, without prefix, in order."""
        names = OutputSpec((), {}, embedding_size=1 if self.embeddings else None).schema().names
        if self.calibrated:
            names.insert(names.index("error") + 1, "accepted")
        return tuple(name for name in names if name not in ("shard", "key"))

    def check(self, schema: pa.Schema) -> None:
        """Raise for a dataset without such images, or with columns that have the names of added ones.

        Raises:
            ConfigError: The message names the column, and the columns that there are.
        """
        if self.image not in schema.names:
            raise ConfigError(f"image_column {self.image!r}: there is no such column; there are {listed(schema)}")
        kind = schema.field(self.image).type
        if not is_image(kind) and not is_pixels(kind):
            raise ConfigError(
                f"image_column {self.image!r} holds {kind}; images are binary, a struct with `bytes`, or a uint8 tensor "
                "of shape (height, width, 3)"
            )
        kept = set(schema.names) - self.replaced(schema)
        clash = [self.prefix + name for name in self.added if self.prefix + name in kept]
        if clash:
            raise ConfigError(
                f"the dataset already has columns {', '.join(clash)}, which labelling adds; give prefix=, or drop them"
            )

    def adopts(self, schema: pa.Schema) -> bool:
        """Tell whether `status` and `error` of the dataset say what `read_shards` could not read.

        They do if there are also `shard` and `key` and all four are text, so they are recognised after a filter or a map
        too. `status` or `error` without those are columns like any other.
        """
        names = [name for name in SHARD_COLUMNS if name != "bytes"]
        return all(name in schema.names and is_text(schema.field(name).type) for name in names)

    def replaced(self, schema: pa.Schema) -> set[str]:
        """Return which of the dataset's columns are replaced: `status` and `error` where they are adopted."""
        return set(_ADOPTED) if self.adopts(schema) and not self.prefix else set()


def is_pixels(kind: pa.DataType) -> bool:
    """Tell whether a column holds arrays, such as those of `ray.data.read_images` and NumPy batches."""
    return isinstance(kind, pa.BaseExtensionType) and "tensor" in kind.extension_name
