"""The operators that hold the model: pixels to labels, and both steps in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from models.errors import DeviceLostError
from models.inference.classifier import DeviceChoice, Predictions
from models.spec import ModelSpec
from pipeline.dest.writer import STATUS_OK, OutputSpec, Row, build_batch
from pipeline.operators.columns import PIXELS, LabelColumns
from pipeline.operators.decode import DecodeImages, chunk_arrays
from pipeline.operators.model_ref import build_labeller
from pipeline.operators.stages import DecodeSettings
from pipeline.session.pools import Pools

# Any code will do: Ray starts the process anew, with a new context on the GPU.
LOST_GPU_EXIT = 76


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """What an actor needs to know to hold the model. Picklable.

    Attributes:
        spec: The model's entry.
        choice: Which artifact, on what.
        labels: Name of each class, by class index.
        top_k: Labels per image.
        batch_size: Images per inference.
        gpu_share: Of a GPU, that each actor has; 0 on a CPU.
        graph: Reference to the joined graph's bytes in Ray's object store.
    """

    spec: ModelSpec
    choice: DeviceChoice
    labels: tuple[str, ...]
    top_k: int
    batch_size: int
    gpu_share: float
    graph: Any


class LabelImages:
    """Operator for `map_batches`: replace the pixels that `DecodeImages` added by labels. Rows in = rows out, in order.

    Args:
        settings: Which model.
        columns: What is added.
    """

    def __init__(self, settings: LabelSettings, columns: LabelColumns) -> None:
        s = settings
        pools = Pools((1, 1), 0, 0, decoders=0, batch_size=s.batch_size, gpu_share=s.gpu_share)
        graph = ray.get(s.graph)
        self._labeller = build_labeller(s.spec, s.choice, s.top_k, len(s.labels), pools, graph)
        self._batch_size = s.batch_size
        self._columns = columns
        side = s.spec.preprocessing.crop
        features = self._predict(np.zeros((1, side, side, 3), np.uint8)).embedding
        self._output = OutputSpec(s.labels, {}, embedding_size=None if features is None else features.shape[1])
        self._schema = self._output.schema()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label the rows whose status is ok; the others have null."""
        prefix = self._columns.prefix
        told = (table[prefix + name].to_pylist() for name in ("status", "error", "width", "height"))
        rows = [Row("", "", *values) for values in zip(*told, strict=True)]
        pixels = join([chunk_arrays(chunk) for chunk in table[PIXELS].chunks])
        is_ok = np.fromiter((row.status == STATUS_OK for row in rows), np.bool_, len(rows))
        predictions = self._predict(pixels if is_ok.all() else pixels[is_ok])
        labelled = build_batch(rows, predictions, self._output, self._schema)
        table = table.drop_columns([PIXELS, *(prefix + name for name in ("status", "error", "width", "height"))])
        for name in self._columns.added:
            table = table.append_column(prefix + name, labelled[name])
        return table

    def _predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        starts = range(0, max(1, len(pixels)), self._batch_size)
        try:
            return Predictions.join(
                [
                    self._labeller.predict(pixels[i : i + self._batch_size], embedding=self._columns.embeddings)
                    for i in starts
                ]
            )
        except DeviceLostError:
            os._exit(LOST_GPU_EXIT)  # a CUDA context does not come back in this process


class DecodeAndLabel:
    """Operator for `map_batches`: both steps in one process, for machines without a GPU. Arguments as theirs."""

    def __init__(self, decode: DecodeSettings, label: LabelSettings, columns: LabelColumns) -> None:
        self._decode = DecodeImages(decode, columns)
        self._label = LabelImages(label, columns)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows, labelled, piece by piece."""
        for piece in self._decode(table):  # Ray Data takes generators, and no other iterators
            yield self._label(piece)


def join(arrays: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Put the pixels of a column's chunks behind one another; of one chunk without a copy."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
