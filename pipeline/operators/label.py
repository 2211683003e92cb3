"""The operators that hold the model: pixels to labels, and both steps in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference.predictions import Predictions
from pipeline.dest.writer import STATUS_OK, OutputSpec, Row, build_batch
from pipeline.operators.columns import PIXELS, LabelColumns
from pipeline.operators.decode import DecodeImages, chunk_arrays
from pipeline.operators.isolated import START_S, IsolatedLabeller
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.stages import DecodeSettings, refused
from pipeline.operators.watchdog import WatchedLabeller, patience


class LabelImages:
    """Operator for `map_batches`: replace the pixels of `DecodeImages` by labels. Rows in = rows out, in order.

    A batch that takes too long, or a lost GPU, ends the process, and Ray restarts it.

    Args:
        model: The model.
        columns: Which columns are added.
        isolate: Whether to label in a child process, where an image that the model fails on costs only its row.
    """

    def __init__(self, model: ModelRef, columns: LabelColumns, isolate: bool = False) -> None:
        side, self._batch_size = model.spec.preprocessing.crop, model.batch_size
        self._columns = columns
        self._kept = threading.local()
        self._labeller: WatchedLabeller | None = None
        if isolate:
            self._isolated = IsolatedLabeller(model.loader(), START_S, embedding=columns.embeddings)
            self._isolated.child.timeout_s = patience(
                self._isolated.predict, side, self._batch_size, model.image_timeout_s
            )
        else:
            self._labeller = WatchedLabeller(model.loader()(), side, self._batch_size, model.image_timeout_s)
        self._nothing = self._predict(np.zeros((1, side, side, 3), np.uint8))[0].rows(0, 0)
        features = self._nothing.embedding
        size = None if features is None else features.shape[1]
        self._output = OutputSpec(model.labels, {}, embedding_size=size, calibration=model.calibration)
        self._schema = self._output.schema()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label the rows whose status is ok; the other rows get nulls."""
        prefix = self._columns.prefix
        decoded = (table[prefix + name].to_pylist() for name in ("status", "error", "width", "height"))
        rows = [Row("", "", *values) for values in zip(*decoded, strict=True)]
        pixels = self._join([chunk_arrays(chunk) for chunk in table[PIXELS].chunks])
        is_ok = np.fromiter((row.status == STATUS_OK for row in rows), np.bool_, len(rows))
        pieces, faults = [self._nothing], dict[int, str]()
        wanted = pixels if is_ok.all() else pixels[is_ok]
        for start in range(0, len(wanted), self._batch_size):
            found, wrong = self._predict(wanted[start : start + self._batch_size])
            pieces.append(found)
            faults.update({start + place: what for place, what in wrong.items()})
        labelled = build_batch(refused(rows, faults), Predictions.join(pieces), self._output, self._schema)
        table = table.drop_columns([PIXELS, *(prefix + name for name in ("status", "error", "width", "height"))])
        for name in self._columns.added:
            table = table.append_column(prefix + name, labelled[name])
        return table

    def _join(self, arrays: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Join the pixels of a column's chunks in memory that is reused; a single chunk is returned as it is."""
        if len(arrays) == 1:
            return arrays[0]
        rows = sum(map(len, arrays))
        kept = getattr(self._kept, "pixels", None)
        if kept is None or len(kept) < rows:
            kept = self._kept.pixels = np.empty((rows, *arrays[0].shape[1:]), np.uint8)
        return np.concatenate(arrays, out=kept[:rows])

    def _predict(self, pixels: npt.NDArray[np.uint8]) -> tuple[Predictions, dict[int, str]]:
        """Return the labels of the images that the model takes, and the error of each other image, by its place."""
        if self._labeller is None:
            return self._isolated.predict(pixels)
        return self._labeller.predict(pixels, embedding=self._columns.embeddings), {}


class DecodeAndLabel:
    """Operator for `map_batches`: both steps in one process, for machines without a GPU. Takes the arguments of both."""

    def __init__(self, decode: DecodeSettings, label: ModelRef, columns: LabelColumns) -> None:
        self._decode = DecodeImages(decode, columns)
        self._label = LabelImages(label, columns)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the labelled rows, piece by piece."""
        for piece in self._decode(table):  # Ray Data accepts generators, but no other iterators
            yield self._label(piece)
