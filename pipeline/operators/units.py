"""Units as columns: what the driver hands over, what comes back, and the assembly of units from labelled rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InferenceError, ShardlabelError, SourceError
from pipeline.dest.commits import Commit
from pipeline.dest.writer import UnitWriter
from pipeline.operators.stages import UnitNotes, UnitSettings, open_writer, publish_unit
from pipeline.session.stage_clock import Stage, StageClock
from pipeline.sources.unit import Unit

_RESULTS = pa.schema([("unit", pa.int64()), ("commit", pa.string()), ("why", pa.string()), ("stops", pa.bool_())])
# Units published at a time: on an object store most of that is waiting.
PUBLISHING = 8
# Beside the rows' own columns: the row's unit, its place in the unit, what ends the unit, and the seconds of each stage.
UNIT, ROW, END = "_unit", "_row", "_end"
# Status of a row that is no sample: its unit is empty or failed. No output has it.
NO_SAMPLE = "end"
SPENT = {Stage.READ: "_read_s", Stage.DECODE: "_decode_s", Stage.LABEL: "_label_s"}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a unit.

    Attributes:
        unit: Its number.
        commit: Commit record of a finished unit.
        why: Reason of a failure; "" where there is none.
        stops: Whether other units would fail too.
    """

    unit: int
    commit: Commit | None = None
    why: str = ""
    stops: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The end of a unit. Its last row carries it; a unit that is empty or failed has a row for it that is no sample.

    Attributes:
        rows: Number of the unit's samples.
        notes: What reading the unit found.
        why: Reason of a failure; "" where there is none.
        stops: Whether other units would fail too.
    """

    rows: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    stops: bool = False

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def why_failed(err: Exception) -> tuple[str, bool]:
    """Return the words for an error, and whether other units would meet it too: storage, a full disk, no model."""
    text = str(err) if isinstance(err, ShardlabelError) else f"unexpected {type(err).__name__}: {err}"
    if isinstance(err, OSError):
        return text, err.errno is not None
    return text, isinstance(err, ShardlabelError) and not isinstance(err, (InferenceError, SourceError))


def results_table(results: Sequence[Result]) -> pa.Table:
    """Return results as a table; commit records as JSON."""
    rows = [{**asdict(one), "commit": one.commit and json.dumps(asdict(one.commit))} for one in results]
    return pa.Table.from_pylist(rows, _RESULTS)


def results_of(table: pa.Table) -> Iterator[Result]:
    """Yield the results of a `results_table`."""
    for row in table.to_pylist():
        yield Result(**{**row, "commit": row["commit"] and Commit(**json.loads(row["commit"]))})


def with_seconds(table: pa.Table, stage: Stage, seconds: float) -> pa.Table:
    """Add a stage's seconds, divided among the rows."""
    return table.append_column(SPENT[stage], pa.array(np.full(table.num_rows, seconds / table.num_rows, np.float32)))


def by_unit(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Cut a table into runs of consecutive rows of one unit."""
    units, rows = table[UNIT].to_numpy(), table[ROW].to_numpy()
    edges = [0, *(np.flatnonzero((np.diff(units) != 0) | (np.diff(rows) != 1)) + 1).tolist(), len(units)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield int(units[start]), table.slice(start, stop - start)


@dataclass(slots=True)
class _Open:
    """A unit with some of its rows."""

    unit: Unit
    writer: UnitWriter
    began: float = field(default_factory=time.perf_counter)
    held: dict[int, pa.Table] = field(default_factory=dict)  # by their first row's place
    end: End | None = None


class UnitAssembly:
    """Assembles units from labelled rows that come in any order, and publishes each complete one.

    Use as a context manager. A row is written to a local file once all rows before it have come, so memory does not grow
    with a unit's size.

    Args:
        settings: What to write, and where.
        units: Units whose rows come.
        clock: Takes the seconds of each stage, over all processes.
    """

    def __init__(self, settings: UnitSettings, units: Sequence[Unit], clock: StageClock) -> None:
        self._clock = clock
        self._settings = settings
        self._schema = settings.output.schema()
        self._units = {unit.number: unit for unit in units}
        self._open: dict[int, _Open] = {}
        self._failed: set[int] = set()
        self._publishing: dict[Future[Commit], int] = {}
        self._pool = ThreadPoolExecutor(PUBLISHING, "publish")

    def __enter__(self) -> UnitAssembly:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        for one in self._open.values():
            _discard(one.writer)

    def add(self, table: pa.Table) -> Iterator[Result]:
        """Take rows; yield the outcome of units that were published meanwhile, or that failed according to a row."""
        for stage, name in SPENT.items():
            self._clock.add(stage, pc.sum(table[name]).as_py())
        for number, rows in by_unit(table):
            if number in self._failed:
                continue
            ends = [End(**json.loads(text.as_py())) for text in rows[END].drop_null()]
            if failed := next((end for end in ends if end.why), None):
                yield self._fail(number, failed.why, failed.stops)
                continue
            try:
                with self._clock.measured(Stage.WRITE):
                    self._write(number, rows, ends)
            except (ShardlabelError, OSError) as err:
                yield self._fail(number, *why_failed(err))
        yield from self._published(at_most=2 * PUBLISHING)

    def rest(self) -> Iterator[Result]:
        """Wait for the units that are being published, and yield their outcome."""
        yield from self._published(at_most=0)

    def _write(self, number: int, rows: pa.Table, ends: list[End]) -> None:
        if number not in self._open:
            unit = self._units[number]
            self._open[number] = _Open(unit, open_writer(self._settings, unit).__enter__())
        one = self._open[number]
        if ends:
            (one.end,) = ends
            if rows["status"][-1].as_py() == NO_SAMPLE:
                rows = rows.slice(0, rows.num_rows - 1)
        if rows.num_rows:
            one.held[rows[ROW][0].as_py()] = rows
        while (piece := one.held.pop(one.writer.rows, None)) is not None:
            columns = [piece[kind.name].cast(kind.type) for kind in self._schema]
            for batch in pa.Table.from_arrays(columns, schema=self._schema).combine_chunks().to_batches():
                one.writer.write(batch)
        if one.end is not None and one.end.rows == one.writer.rows:
            del self._open[number]
            self._publishing[self._pool.submit(_finish, self._settings, one, one.end)] = number

    def _fail(self, number: int, why: str, stops: bool) -> Result:
        self._failed.add(number)
        if number in self._open:
            _discard(self._open.pop(number).writer)
        return Result(number, None, why, stops)

    def _published(self, *, at_most: int) -> Iterator[Result]:
        """Yield the outcome of published units; wait until at most `at_most` units are being published."""
        while self._publishing:
            timeout = None if len(self._publishing) > at_most else 0
            done, _ = wait(self._publishing, timeout, return_when=FIRST_COMPLETED)
            if not done:
                return
            for future in done:
                number = self._publishing.pop(future)
                err = future.exception()
                if err is None:
                    yield Result(number, future.result())
                elif isinstance(err, Exception):
                    yield Result(number, None, *why_failed(err))
                else:
                    raise err


def _finish(settings: UnitSettings, one: _Open, end: End) -> Commit:
    one.writer.__exit__(None, None, None)
    return publish_unit(settings, one.unit, one.writer, UnitNotes(**end.notes), one.began)


def _discard(writer: UnitWriter) -> None:
    writer.__exit__(InterruptedError, None, None)
