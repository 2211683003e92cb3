"""Check that DEST holds what its commit records say: every unit once, whole, and unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import ConfigError, StorageError
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import Plan, open_plan
from pipeline.dest.prediction_log import foreign_files, open_records
from pipeline.sources.unit import part_number
from pipeline.storage.storage import Storage

# Faults that a report names; the others are counted.
MAX_FAULTS = 100
# Reads of part files at a time: each waits on storage more than it computes.
READERS = 8


@dataclass(slots=True)
class Verification:
    """What a check of DEST found.

    Attributes:
        units: In the plan; `finished` of them have a record.
        rows: In the part files that were read.
        faults: What is wrong, a sentence each, at most MAX_FAULTS.
        num_faults: How many in all.
    """

    units: int
    finished: int = 0
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    num_faults: int = 0

    @property
    def ok(self) -> bool:
        """Whether every unit is finished and nothing is wrong."""
        return self.num_faults == 0 and self.finished == self.units

    def blame(self, fault: str) -> None:
        """Note a fault."""
        self.num_faults += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)


def verify_dest(dest: Storage) -> Verification:
    """Read every part file that a record names, and compare rows, SHA-256, schema, statuses and keys.

    Raises:
        SourceError: DEST holds no plan.
        ConfigError: The plan is damaged.
    """
    plan = open_plan(dest, logs=True)
    if plan.is_log:
        return _verify_log(dest)
    result = Verification(units=plan.units)
    log = CommitLog.of(dest, plan)
    done = np.zeros(plan.units, np.bool_)
    again: dict[int, list[Commit]] = {}
    for commit in _records(log, result.blame):
        if done[commit.unit]:
            again.setdefault(commit.unit, []).append(commit)
        done[commit.unit] = True
    result.finished = int(done.sum())
    if result.finished < plan.units:
        first = int((~done).argmax())
        result.blame(f"{plan.units - result.finished} of {plan.units} units are not finished, the first is {first}")
    _check_parts(dest, _units(log, again, done), result)
    _check_files(dest, plan, done, result)
    return result


def _verify_log(dest: Storage) -> Verification:
    """Read every part file of a prediction log, and compare rows, schema and statuses with what it says of itself."""
    result = Verification(units=0)
    plan, records = open_records(dest, result.blame)
    result.units = result.finished = plan.units
    _check_parts(dest, ([commit] for commit in records), result)
    for name in foreign_files(dest):
        result.blame(f"{name}: is no part file of a prediction log; a reader of DEST/*.parquet reads it too")
    return result


def _check_parts(dest: Storage, units: Iterator[list[Commit]], result: Verification) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        schema: pa.Schema | None = None
        for commit, found in _checked(pool, dest, units):
            if isinstance(found, str):
                result.blame(found)
                continue
            result.rows += commit.rows
            schema = schema or found
            if found != schema:
                result.blame(f"{commit.part}: its columns differ from those of the first part")


def _records(log: CommitLog, blame: Callable[[str], None]) -> Iterator[Commit]:
    """Yield the records that can be read; of a file that cannot, say so once."""
    for name in log.names():
        try:
            yield from log.records([name])
        except ConfigError as err:
            blame(str(err))


def _units(log: CommitLog, again: dict[int, list[Commit]], done: npt.NDArray[np.bool_]) -> Iterator[list[Commit]]:
    """Yield each finished unit's records: a run that was cut short while it merged leaves a second."""
    left = done.copy()
    for commit in _records(log, lambda fault: None):
        if left[commit.unit]:
            left[commit.unit] = False
            yield [commit, *again.get(commit.unit, ())]


def _checked(
    pool: ThreadPoolExecutor, dest: Storage, units: Iterator[list[Commit]]
) -> Iterator[tuple[Commit, pa.Schema | str]]:
    """Yield a record of each unit with its part's schema, or with what is wrong; few parts are in memory at a time."""
    while window := list(islice(units, READERS * 4)):
        yield from pool.map(lambda records: _check_unit(dest, records), window)


def _check_unit(dest: Storage, records: list[Commit]) -> tuple[Commit, pa.Schema | str]:
    """Compare a unit's part with each of its records; the part is of one of them, or wrong."""
    found = [(record, _check_part(dest, record)) for record in records]
    return next((one for one in found if not isinstance(one[1], str)), found[0])


def _check_part(dest: Storage, commit: Commit) -> pa.Schema | str:
    """Return the part's schema, or a sentence that says what is wrong with it."""
    try:
        content = dest.read_bytes(commit.part)
    except StorageError as err:
        return f"{commit.part}: {err}"
    if commit.sha256 and sha256(content).hexdigest() != commit.sha256:
        return f"{commit.part}: its SHA-256 is not that of its commit record ({len(content)} of {commit.size} bytes)"
    try:
        # Several parts are read at a time already: threads of Arrow's own would be more than there are cores. Nor
        # `read_table`, which goes through a scanner: its threads were seen to abort the process as it ended.
        table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
        return _check_rows(commit, table)
    except (pa.ArrowException, OSError, KeyError) as err:
        return f"{commit.part}: cannot be read: {err}"


def _check_rows(commit: Commit, table: pa.Table) -> pa.Schema | str:
    if table.num_rows != commit.rows:
        return f"{commit.part}: holds {table.num_rows} rows, its commit record says {commit.rows}"
    ok = pc.sum(pc.equal(table["status"].cast(pa.string()), "ok")).as_py() or 0
    if ok != commit.ok:
        return f"{commit.part}: holds {ok} rows with status ok, its commit record says {commit.ok}"
    keys = table.select(["shard", "key"]).cast(pa.schema([("shard", pa.string()), ("key", pa.string())]))
    distinct = keys.group_by(["shard", "key"]).aggregate([]).num_rows
    # In a prediction log an image comes as often as it was asked for.
    if commit.sha256 and distinct != table.num_rows:
        return f"{commit.part}: {table.num_rows - distinct} keys come more than once"
    return table.schema.remove_metadata()


def _check_files(dest: Storage, plan: Plan, done: npt.NDArray[np.bool_], result: Verification) -> None:
    """Look for part files that no finished unit accounts for: a reader of DEST/*.parquet would count them."""
    for file in dest.list():
        unit = part_number(file.path)
        if file.path.endswith(".parquet") and (unit is None or unit >= plan.units):
            result.blame(f"{file.path}: belongs to no unit of the plan; a reader of DEST/*.parquet reads it too")
        elif unit is not None and not done[unit]:
            # Published by a run that died before it wrote the record: whole, and written again by the next run.
            result.blame(f"{file.path}: its unit has no commit record yet; run the same command again")
