"""A finished DEST, for commands that read one: its plan, and what is in its part files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import SourceError, StorageError
from pipeline.dest.plan import Plan, open_plan
from pipeline.dest.prediction_log import open_records
from pipeline.storage.retries import reason, retried
from pipeline.storage.storage import Storage, open_storage

# Part files up to this size are read with one request.
WHOLE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class FinishedDest:
    """A finished DEST.

    Attributes:
        dest: Where it is.
        plan: Its plan.
        digest: SHA-256 over those of all part files: if it differs, some row may differ.
        rows: int64 of shape (units,): rows of each part file.
        sizes: int64 of shape (units,): bytes of each part file.
        bytes_read: int64 of shape (units,): bytes of input that were read for it.
        schema: Schema of the first part file, with its metadata.
        notes: `incomplete` and `skipped` of the records that have either, by unit, as JSON.
    """

    dest: Storage
    plan: Plan
    digest: str
    rows: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    bytes_read: npt.NDArray[np.int64]
    schema: pa.Schema
    notes: dict[int, str]

    @property
    def metadata(self) -> dict[str, str]:
        """The file metadata of the first part file."""
        return metadata_of(self.schema)


def open_finished(location: str, *, logs: bool = False) -> FinishedDest:
    """Open a DEST that a run has finished. Reads its plan and commit records; takes 56 bytes of memory per unit.

    Args:
        location: A folder or URI that `label` or `relabel` wrote to.
        logs: Whether it may be a prediction log; its present part files are then all there is.

    Raises:
        SourceError: It is not a DEST of shardlabel, or is unfinished.
        ConfigError: Its plan or a record is damaged.
        StorageError: It cannot be read.
    """
    dest = open_storage(location)
    open_plan(dest, logs=logs)
    plan, records = open_records(dest)
    rows, sizes, bytes_read = (np.zeros(plan.units, np.int64) for _ in range(3))
    digests = np.zeros((plan.units, 32), np.uint8)
    done, notes = np.zeros(plan.units, np.bool_), dict[int, str]()
    for commit in records:
        unit = commit.unit
        if not done[unit]:
            done[unit] = True
            rows[unit], sizes[unit], bytes_read[unit] = commit.rows, commit.size, commit.bytes_read
            if commit.incomplete or commit.skipped:
                note = json.dumps({"incomplete": commit.incomplete, "skipped": commit.skipped}, sort_keys=True)
                notes[unit] = sys.intern(note)  # most are equal: each tar skips the same kinds of members
            digests[unit] = np.frombuffer(bytes.fromhex(commit.sha256.zfill(64)), np.uint8)
    if not done.all():
        raise SourceError(
            f"{dest.describe()} is unfinished: {int(done.sum())} of {plan.units} units; first resume it with the command "
            "that began it; if a shard is gone that was never labelled, label what is left into another DEST"
        )
    return FinishedDest(
        dest, plan, sha256(digests.tobytes()).hexdigest(), rows, sizes, bytes_read, _schema(dest, plan), notes
    )


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """Return a part file's metadata as text."""
    return {key.decode(): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}


@contextmanager
def open_part(dest: Storage, part: str, size: int | None = None) -> Iterator[Any]:
    """Open a part file for pyarrow: a small one is read with one request, a large one only where pyarrow reads it.

    Args:
        dest: DEST.
        part: Name of the file.
        size: Its size in bytes, if known.

    Raises:
        StorageError: It cannot be read, or is not a Parquet file of shardlabel.
    """
    try:
        if dest.is_local:
            file: Any = retried(f"read {dest.describe(part)}", lambda: pa.OSFile(dest.path(part)))
        elif size is not None and size <= WHOLE_BYTES:
            file = pa.BufferReader(dest.read_bytes(part))
        else:
            file = dest.open_random(part)
        with closing(file):
            yield file
    except (pa.ArrowException, OSError, KeyError) as err:
        raise StorageError(
            f"{dest.describe(part)} cannot be read: {reason(err)}; `shardlabel verify` says what else is wrong there"
        ) from err


def _schema(dest: Storage, plan: Plan) -> pa.Schema:
    if not plan.units:
        why = "is a prediction log that has no rows yet" if plan.is_log else "labels a part of SOURCE without shards"
        raise SourceError(f"{dest.describe()} {why}")
    with open_part(dest, plan.part(0)) as file:
        return pq.read_schema(file)
