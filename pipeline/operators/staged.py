"""The two operators of the two-stage shape: units to rows with pixels on CPUs, and pixels to labels where the model is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from models.malloc import tune_malloc
from pipeline.operators.columns import LabelColumns
from pipeline.operators.decode import PIECE_ROWS, DecodeImages
from pipeline.operators.label import LabelImages
from pipeline.operators.model_ref import ModelRef
from pipeline.operators.read import column_of, in_blocks
from pipeline.operators.stages import DecodeSettings, UnitNotes, UnitSettings, read_samples
from pipeline.operators.units import (
    END,
    NO_SAMPLE,
    ROW,
    UNIT,
    End,
    by_unit,
    units_of,
    why_failed,
    with_end,
    with_seconds,
)
from pipeline.session.attempts import RunState, StopFlag
from pipeline.session.stage_clock import Stage, StageClock
from pipeline.session.worker import prepare_worker
from pipeline.sources.sample import Sample
from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)

# A name that no carried column has.
_IMAGE = "_shardlabel_image"


def staged_columns(settings: UnitSettings) -> LabelColumns:
    """Return which columns go in and are added."""
    return LabelColumns(_IMAGE, embeddings=settings.embeddings)


class ReadDecode:
    """Operator: slices of units (`units_table`) to rows with pixels, in pieces; the last row of a unit says that it ends.

    Args:
        settings: What to do.
        state: Whether to stop.
        isolate: Whether to decode in a child process that may die or hang.
    """

    def __init__(self, settings: UnitSettings, state: RunState, isolate: bool) -> None:
        s = settings
        self._settings = s
        self._columns = staged_columns(s)
        decoding = DecodeSettings(s.preprocessing, s.mode, s.limits, s.image_timeout_s)
        self._decode = DecodeImages(decoding, self._columns, isolate)
        self._carried = s.columns.carried
        self._stop = StopFlag(state)
        prepare_worker()
        tune_malloc()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of each unit; none of those that are not begun when the run is to stop."""
        for unit in units_of(table):
            if not self._stop.is_set():
                yield from self._read(unit)

    def _read(self, unit: Unit) -> Iterator[pa.Table]:
        clock, notes, rows = StageClock(), UnitNotes(), 0
        before: pa.Table | None = None
        try:
            samples = clock.timed(Stage.READ, read_samples(self._settings, unit, notes))
            for group in in_blocks(samples, PIECE_ROWS):
                piece = self._piece(group, unit, rows, clock)
                rows += piece.num_rows
                if before is not None:
                    yield with_end(before, None)
                before = piece
            end = End(rows, notes.told())
        except Exception as err:
            logger.exception("unit=%d failed", unit.number)
            why, stops = why_failed(err)
            before, end = None, End(why=why, stops=stops)
        if before is None:
            no_sample = Sample("", "", None, NO_SAMPLE, carried=(None,) * len(self._carried))
            before = self._piece([no_sample], unit, rows, clock)
        yield with_end(before, end)

    def _piece(self, samples: list[Sample], unit: Unit, first: int, clock: StageClock) -> pa.Table:
        with clock.measured(Stage.DECODE):
            decoded = self._decode.decoded(samples)
        columns: dict[str, Any] = {
            "shard": pa.array([sample.shard for sample in samples], pa.string()),
            "key": pa.array([sample.key for sample in samples], pa.string()),
        }
        for place, kind in enumerate(self._carried):
            columns[kind.name] = column_of([sample.carried[place] for sample in samples], kind.type)
        columns |= decoded
        columns[UNIT] = pa.array(np.full(len(samples), unit.number, np.int64))
        columns[ROW] = pa.array(np.arange(first, first + len(samples), dtype=np.int64))
        table = pa.table(columns)
        spent = clock.take()
        for stage in (Stage.READ, Stage.DECODE):
            table = with_seconds(table, stage, spent[stage])
        return table


class Label:
    """Operator: pixels of any units to labels. A unit that an error is of is told alone, in a row in place of its own.

    Args:
        model: Which one.
        columns: What is added.
        isolate: Whether to label in a child process that may die or hang.
    """

    def __init__(self, model: ModelRef, columns: LabelColumns, isolate: bool) -> None:
        self._label = LabelImages(model, columns, isolate)
        prepare_worker()
        tune_malloc()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Label a batch; where that fails, the rows of each unit apart."""
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
        except Exception as err:  # whatever it is, the driver must hear of it  # noqa: BLE001
            why, stops = why_failed(err)
            row = rows.slice(0, 1)
            for name, text in (("status", NO_SAMPLE), (END, End(why=why, stops=stops).text())):
                row = row.set_column(row.column_names.index(name), name, pa.array([text], pa.string()))
            return self._label(row)
