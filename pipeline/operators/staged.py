"""The operators of the two-stage shape: units to rows with pixels on CPUs, and pixels to labels where the model is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ray.data.extensions import ArrowTensorArray

from models.malloc import tune_malloc
from pipeline.dest.plan import units_of
from pipeline.dest.writer import STATUS_OK, Row
from pipeline.operators.columns import PIXELS, LabelColumns
from pipeline.operators.decode import row_columns
from pipeline.operators.label import LabelImages
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.read import BLOCK_BYTES, column_of
from pipeline.operators.stages import (
    UnitNotes,
    UnitSettings,
    decode_sample,
    open_decoder,
    read_samples,
)
from pipeline.operators.units import END, NO_SAMPLE, ROW, UNIT, End, by_unit, why_failed, with_seconds
from pipeline.session.attempts import RunState, StopFlag
from pipeline.session.stage_clock import Stage, StageClock
from pipeline.session.worker import prepare_worker
from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)

# Images that go on together, unless their carried columns are large: 38 MB of pixels of 224 x 224.
PIECE_ROWS = 256
# No carried column has this name.
_IMAGE = "_shardlabel_image"


def staged_columns(settings: UnitSettings) -> LabelColumns:
    """Return the columns that go in and those that are added."""
    calibrated = settings.output.calibration is not None
    return LabelColumns(_IMAGE, embeddings=settings.embeddings, calibrated=calibrated)


class ReadDecode:
    """Operator: slices of units (`units_table`) to rows with pixels, in pieces that fill across the units of a task.

    The last row of a unit marks its end; for an empty or failed unit it is a row that is no sample.

    Args:
        settings: How to read and decode.
        state: Whether to stop.
        isolate: Whether to decode in a child process that may die or hang.
    """

    def __init__(self, settings: UnitSettings, state: RunState, isolate: bool) -> None:
        self._settings = settings
        self._decoder = open_decoder(settings.decoding, isolate=isolate)  # stays open as long as this object
        self._decode = self._decoder.__enter__()
        self._stop = StopFlag(state)
        prepare_worker()
        tune_malloc()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of each unit; when the run is to stop, skip the units that have not begun."""
        clock, piece = StageClock(), _Piece(self._settings)
        for unit in units_of([table]):
            if self._stop.is_set():
                break
            notes, rows = UnitNotes(), 0
            try:
                for sample in clock.timed(Stage.READ, read_samples(self._settings, unit, notes)):
                    if piece.is_full:
                        yield piece.table(clock)
                        piece = _Piece(self._settings)
                    with clock.measured(Stage.DECODE):
                        piece.add(unit, decode_sample(sample, self._decode, piece.next), rows)
                    rows += 1
                end = End(rows, asdict(notes))
            except Exception as err:
                logger.exception("unit=%d failed", unit.number)
                why, stops = why_failed(err)
                end = End(why=why, stops=stops)
            if end.why or not rows:
                if piece.is_full:
                    yield piece.table(clock)
                    piece = _Piece(self._settings)
                nothing = (None,) * len(self._settings.columns.added)
                piece.add(unit, Row("", "", NO_SAMPLE, carried=nothing), rows)
            piece.ends[-1] = end.text()
        if piece.rows:
            yield piece.table(clock)


class _Piece:
    """Rows that go on together, and their pixels."""

    def __init__(self, settings: UnitSettings) -> None:
        side = settings.preprocessing.crop
        self._carried = settings.columns.added
        self._pixels = np.empty((PIECE_ROWS, side, side, 3), np.uint8)
        self._units: list[int] = []
        self._places: list[int] = []
        self._carried_bytes = 0
        self.rows: list[Row] = []
        self.ends: list[str | None] = []

    @property
    def is_full(self) -> bool:
        return len(self.rows) == PIECE_ROWS or self._carried_bytes >= BLOCK_BYTES

    @property
    def next(self) -> npt.NDArray[np.uint8]:
        """Memory for the next row's pixels."""
        pixels: npt.NDArray[np.uint8] = self._pixels[len(self.rows)]
        return pixels

    def add(self, unit: Unit, row: Row, place: int) -> None:
        """Add a row; `place` is its place in its unit."""
        if row.status != STATUS_OK:
            self.next[:] = 0
        self.rows.append(row)
        self._carried_bytes += row.carried_bytes
        self._units.append(unit.number)
        self._places.append(place)
        self.ends.append(None)

    def table(self, clock: StageClock) -> pa.Table:
        """Return the rows as a table; the clock's seconds are divided among them."""
        columns: dict[str, Any] = {
            "shard": pa.array([row.shard for row in self.rows], pa.string()),
            "key": pa.array([row.key for row in self.rows], pa.string()),
        }
        for number, kind in enumerate(self._carried):
            columns[kind.name] = column_of([row.carried[number] for row in self.rows], kind.type)
        columns |= row_columns(self.rows)
        columns[PIXELS] = ArrowTensorArray.from_numpy(self._pixels[: len(self.rows)])
        columns[UNIT] = pa.array(self._units, pa.int64())
        columns[ROW] = pa.array(self._places, pa.int64())
        columns[END] = pa.array(self.ends, pa.string())
        spent, table = clock.take(), pa.table(columns)
        for stage in (Stage.READ, Stage.DECODE):
            table = with_seconds(table, stage, spent[stage])
        return table


class Label:
    """Operator: pixels of any units to labels. An error is traced to its unit, which gets a row that carries the error.

    Args:
        model: The model.
        columns: Which columns are added.
        isolate: Whether to label in a child process that may die or hang.
    """

    def __init__(self, model: ModelRef, columns: LabelColumns, isolate: bool) -> None:
        self._label = LabelImages(model, columns, isolate)
        prepare_worker()
        tune_malloc()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label a batch; if that fails, label the rows of each unit separately."""
        if not table.num_rows:
            return table
        began = time.perf_counter()
        try:
            labelled = self._label(table)
        except Exception:
            logger.exception("a batch failed")
            labelled = pa.concat_tables([self._alone(rows) for _, rows in by_unit(table)])
        return with_seconds(labelled, Stage.LABEL, time.perf_counter() - began)

    def _alone(self, rows: pa.Table) -> pa.Table:
        try:
            return self._label(rows)
        except Exception as err:  # the driver must hear of any error  # noqa: BLE001
            why, stops = why_failed(err)
            row = rows.slice(0, 1)
            for name, text in (("status", NO_SAMPLE), (END, End(why=why, stops=stops).text())):
                row = row.set_column(row.column_names.index(name), name, pa.array([text], pa.string()))
            return self._label(row)
