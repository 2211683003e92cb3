"""Check that DEST holds what its commit records say: every unit once, whole, and unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

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
from pipeline.storage.listing import ahead
from pipeline.storage.storage import Storage

BoolArray = npt.NDArray[np.bool_]

# Maximum number of faults that a report names; the others are counted.
MAX_FAULTS = 100
# Part files that are read at a time: each waits on storage more than it computes.
READERS = 8


@dataclass(slots=True)
class Verification:
    """What a check of DEST found.

    Attributes:
        units: In the plan; `finished` of them have a record.
        rows: In the part files that were read.
        faults: What is wrong, a sentence each, at most MAX_FAULTS.
        num_faults: Total number of faults.
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
    records = _records(CommitLog.of(dest, plan), result.blame)
    done = _check_parts(dest, records, plan.units, result)
    result.finished = int(done.sum())
    if result.finished < plan.units:
        first = int((~done).argmax())
        result.blame(f"{plan.units - result.finished} of {plan.units} units are not finished, the first is {first}")
    _check_files(dest, plan, done, result)
    return result


def _verify_log(dest: Storage) -> Verification:
    """Read every part file of a prediction log, and compare rows, schema and statuses with its metadata."""
    result = Verification(units=0)
    plan, records = open_records(dest, result.blame)
    result.units = result.finished = plan.units
    _check_parts(dest, records, plan.units, result)
    for name in foreign_files(dest):
        result.blame(f"{name}: is not a part file of a prediction log; a reader of DEST/*.parquet reads it too")
    return result


def _check_parts(dest: Storage, records: Iterator[Commit], units: int, result: Verification) -> BoolArray:
    """Compare each part with its record; return which units have one.

    A run that was killed during a merge leaves a second record of some units: the part must match one of the two.
    """
    done, right = np.zeros(units, np.bool_), np.zeros(units, np.bool_)
    wrong: dict[int, str] = {}
    schema: pa.Schema | None = None
    for commit, found in ahead(records, lambda commit: (commit, _check_part(dest, commit)), calls=READERS):
        done[commit.unit] = True
        if right[commit.unit]:
            continue
        if isinstance(found, str):
            if len(wrong) < MAX_FAULTS:
                wrong[commit.unit] = found
            continue
        right[commit.unit] = True
        result.rows += commit.rows
        schema = schema or found
        if found != schema:
            result.blame(f"{commit.part}: its columns differ from those of the first part")
    named = [wrong[unit] for unit in wrong if not right[unit]]
    for fault in named:
        result.blame(fault)
    result.num_faults += int((done & ~right).sum()) - len(named)
    return done


def _records(log: CommitLog, blame: Callable[[str], None]) -> Iterator[Commit]:
    """Yield the records that can be read; report a file that cannot once."""
    for name in log.names():
        try:
            yield from log.records([name])
        except ConfigError as err:
            blame(str(err))


def _check_part(dest: Storage, commit: Commit) -> pa.Schema | str:
    """Return the part's schema, or a sentence that says what is wrong with it."""
    try:
        content = dest.read_bytes(commit.part)
    except StorageError as err:
        return f"{commit.part}: {err}"
    if commit.sha256 and sha256(content).hexdigest() != commit.sha256:
        return f"{commit.part}: its SHA-256 differs from its commit record's ({len(content)} of {commit.size} bytes)"
    try:
        # Several parts are read at a time already, so Arrow's own threads would exceed the cores. `read_table` goes
        # through a scanner, whose threads were seen to abort the process as it ended.
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
    # A prediction log has an image as often as it was requested.
    if commit.sha256 and distinct != table.num_rows:
        return f"{commit.part}: {table.num_rows - distinct} keys come more than once"
    return table.schema.remove_metadata()


def _check_files(dest: Storage, plan: Plan, done: BoolArray, result: Verification) -> None:
    """Look for part files that no finished unit accounts for: a reader of DEST/*.parquet would count them."""
    for file in dest.list():
        unit = part_number(file.path)
        if file.path.endswith(".parquet") and (unit is None or unit >= plan.units):
            result.blame(f"{file.path}: belongs to no unit of the plan; a reader of DEST/*.parquet reads it too")
        elif unit is not None and not done[unit]:
            # Published by a run that died before it wrote the record: whole, and written again by the next run.
            result.blame(f"{file.path}: its unit has no commit record yet; run the same command again")
