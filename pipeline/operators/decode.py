"""The operator that decodes: a column of images to a column of pixels, with a status and error where that fails."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from PIL import Image
from ray.data.extensions import ArrowTensorArray

from models.malloc import tune_malloc
from pipeline.dest.writer import STATUS_OK, Row
from pipeline.operators.columns import PIXELS, LabelColumns, is_pixels
from pipeline.operators.stages import DecodeSettings, decode_sample, open_decoder
from pipeline.sources.parquet import column_images
from pipeline.sources.sample import Sample

# Images that are decoded together: 19 MB of pixels of 224 x 224.
PIECE_ROWS = 128

Encoded = tuple[bytes | None, str | None, str | None]
"""An image, or None with its status and error."""


class DecodeImages:
    """Operator for `map_batches`: add pixels, and status, error, width and height. Rows in = rows out, in order.

    An image that kills or hangs its process does not end the run: Ray restarts the actor, which from then on decodes in a
    child process, where such an image costs only its row.

    Args:
        settings: How to decode.
        columns: Which column holds the images.
    """

    def __init__(self, settings: DecodeSettings, columns: LabelColumns) -> None:
        self._settings = settings
        self._columns = columns
        self._decoder = open_decoder(settings, isolate=was_restarted())  # stays open as long as this object
        self._decode = self._decoder.__enter__()
        tune_malloc()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows in pieces of up to PIECE_ROWS; pixels of rows that are not ok are black.

        Raises:
            ConfigError: A column is missing, has a wrong type, or clashes.
        """
        if not table.num_columns:
            return  # an empty block of a dataset whose columns are not known yet
        self._columns.check(table.schema)
        for start in range(0, max(1, table.num_rows), PIECE_ROWS):
            yield self._piece(table.slice(start, PIECE_ROWS))

    def _piece(self, table: pa.Table) -> pa.Table:
        side = self._settings.preprocessing.crop
        pixels = np.zeros((table.num_rows, side, side, 3), np.uint8)
        rows = [
            decode_sample(Sample("", "", data, status, error), self._decode, out)
            for (data, status, error), out in zip(self._images(table), pixels, strict=True)
        ]
        table = table.drop_columns(sorted(self._columns.replaced(table.schema)))
        for name, values in row_columns(rows).items():
            table = table.append_column(self._columns.prefix + name, values)
        return table.append_column(PIXELS, ArrowTensorArray.from_numpy(pixels))

    def _images(self, table: pa.Table) -> Iterator[Encoded]:
        """Yield each row's image, or its status and error."""
        column = table[self._columns.image]
        images = encode_pixels(column) if is_pixels(column.type) else column_images(column, self._settings.limits)
        if not self._columns.adopts(table.schema):
            yield from images
            return
        adopted = zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
        for image, (status, error) in zip(images, adopted, strict=True):
            yield image if status in (None, STATUS_OK) else (None, status, error)


def row_columns(rows: list[Row]) -> dict[str, pa.Array]:
    """Return the results of decoding as columns."""
    return {
        "status": pa.array([row.status for row in rows], pa.string()),
        "error": pa.array([row.error for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
    }


def encode_pixels(column: pa.ChunkedArray) -> Iterator[Encoded]:
    """Yield pixels as bytes of a BMP, so that they are labelled like a file of a lossless format."""
    for array in (array for chunk in column.chunks for array in chunk_arrays(chunk)):
        if array is None:
            yield None, "empty", "the image is null"
            continue
        try:
            buffer = io.BytesIO()
            Image.fromarray(array.squeeze(-1) if array.shape[2:] == (1,) else array).convert("RGB").save(buffer, "BMP")
            yield buffer.getvalue(), None, None
        except (TypeError, ValueError, AttributeError, OSError):
            kind = f"{getattr(array, 'dtype', type(array).__name__)} of shape {getattr(array, 'shape', '?')}"
            yield None, "unsupported", f"pixels must be uint8 of shape (height, width, 3), got {kind}"


def chunk_arrays(chunk: Any) -> npt.NDArray[Any]:  # noqa: ANN401 (Ray's and Arrow's own tensor arrays)
    """Return a chunk of a tensor column as NumPy: one array, or an array of arrays of several shapes."""
    return np.asarray(
        chunk.to_numpy_ndarray() if hasattr(chunk, "to_numpy_ndarray") else chunk.to_numpy(zero_copy_only=False)
    )


def was_restarted() -> bool:
    """Tell whether Ray restarted this actor: its process died, maybe because of an image. False outside an actor."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 warns about something that this property itself uses
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
