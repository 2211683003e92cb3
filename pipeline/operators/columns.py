"""Which columns labelling takes from a dataset, and which it adds; checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from models.errors import ConfigError
from pipeline.dest.writer import OutputSpec
from pipeline.sources.parquet_columns import is_image, is_text, listed

# Of `read_shards`: rows that could not be read say why in the last two.
SHARD_COLUMNS = ("shard", "key", "bytes", "status", "error")
# Pixels on the way from decoding to inference: uint8 [height, width, 3].
PIXELS = "_shardlabel_pixels"
_ADOPTED = ("status", "error")


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The columns of one `label`. Picklable.

    Attributes:
        image: Holds the images.
        prefix: Before each name that is added.
        embeddings: Whether there is an `embedding`.
        calibrated: Whether there is an `accepted`.
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
        """Refuse a dataset that has no such images, or columns of the names that are added.

        Raises:
            ConfigError: Says which column, and which there are.
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
                f"the dataset has columns {', '.join(clash)} already, which labelling adds; give prefix=, or drop them"
            )

    def adopts(self, schema: pa.Schema) -> bool:
        """Tell whether `status` and `error` of the dataset say what `read_shards` could not read.

        They do where `shard` and `key` stand beside them and all four are text: so that they are still known after
        a filter or a map. `status` or `error` without those are columns like any other.
        """
        names = [name for name in SHARD_COLUMNS if name != "bytes"]
        return all(name in schema.names and is_text(schema.field(name).type) for name in names)

    def replaced(self, schema: pa.Schema) -> set[str]:
        """Return which of the dataset's columns are replaced: `status` and `error` where they are adopted."""
        return set(_ADOPTED) if self.adopts(schema) and not self.prefix else set()


def is_pixels(kind: pa.DataType) -> bool:
    """Tell whether a column holds arrays, as `ray.data.read_images` and NumPy batches give."""
    return isinstance(kind, pa.BaseExtensionType) and "tensor" in kind.extension_name
