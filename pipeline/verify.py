"""Check that DEST holds what its commit records say: every unit once, whole, and unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import SourceError, StorageError
from pipeline.commits import Commit, CommitLog, Totals
from pipeline.plan import Plan, read_plan
from pipeline.storage import Storage

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
    plan = read_plan(dest)
    if plan is None:
        raise SourceError(f"{dest.describe()} holds no run of shardlabel: there is no plan in it")
    log = CommitLog(dest, plan.units)
    done, totals = log.load()
    result = Verification(units=plan.units, finished=int(done.sum()))
    if result.finished < plan.units:
        first = int((~done).argmax())
        result.blame(f"{plan.units - result.finished} of {plan.units} units are not finished, the first is {first}")
    with ThreadPoolExecutor(READERS) as pool:
        schema: pa.Schema | None = None
        for commit, found in _checked(pool, dest, log):
            if isinstance(found, str):
                result.blame(found)
                continue
            result.rows += commit.rows
            schema = schema or found
            if found != schema:
                result.blame(f"{commit.part}: its columns differ from those of the first part")
    _check_files(dest, plan, totals, done, result)
    return result


def _checked(pool: ThreadPoolExecutor, dest: Storage, log: CommitLog) -> Iterator[tuple[Commit, pa.Schema | str]]:
    """Yield each record with its part's schema, or with what is wrong; few parts are in memory at a time."""
    window: list[Commit] = []
    for commit in log.records():
        window.append(commit)
        if len(window) == READERS * 4:
            yield from zip(window, pool.map(lambda c: _check_part(dest, c), window), strict=True)
            window = []
    yield from zip(window, pool.map(lambda c: _check_part(dest, c), window), strict=True)


def _check_part(dest: Storage, commit: Commit) -> pa.Schema | str:
    """Return the part's schema, or a sentence that says what is wrong with it."""
    try:
        content = dest.read_bytes(commit.part)
    except StorageError as err:
        return f"{commit.part}: {err}"
    if sha256(content).hexdigest() != commit.sha256:
        return f"{commit.part}: its SHA-256 is not that of its commit record ({len(content)} of {commit.size} bytes)"
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as err:
        return f"{commit.part}: cannot be read: {err}"
    if table.num_rows != commit.rows:
        return f"{commit.part}: holds {table.num_rows} rows, its commit record says {commit.rows}"
    ok = pc.sum(pc.equal(table["status"].cast(pa.string()), "ok")).as_py() or 0
    if ok != commit.ok:
        return f"{commit.part}: holds {ok} rows with status ok, its commit record says {commit.ok}"
    keys = table.select(["shard", "key"]).cast(pa.schema([("shard", pa.string()), ("key", pa.string())]))
    distinct = keys.group_by(["shard", "key"]).aggregate([]).num_rows
    if distinct != table.num_rows:
        return f"{commit.part}: {table.num_rows - distinct} keys come more than once"
    return table.schema.remove_metadata()


def _check_files(dest: Storage, plan: Plan, totals: Totals, done: npt.NDArray[np.bool_], result: Verification) -> None:
    """Look for part files that no finished unit accounts for: a reader of DEST/*.parquet would count them."""
    for file in dest.list():
        name = file.path
        if not name.endswith(".parquet"):
            continue
        number = name.removeprefix("part-").removesuffix(".parquet")
        known = name.startswith("part-") and number.isdigit() and int(number) < plan.units
        if not known:
            result.blame(f"{name}: belongs to no unit of the plan")
        elif not done[int(number)]:
            # Published by a run that died before it wrote the record: whole, and written again by the next run.
            result.blame(f"{name}: its unit has no commit record yet; run the same command again")
    if result.ok and totals.rows != result.rows:
        result.blame(f"the records say {totals.rows} rows, the part files hold {result.rows}")
