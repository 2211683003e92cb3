"""A prediction log: a DEST that is never finished, to which any number of processes add part files at any time.

Each part file is published whole, under a unique name (the time and a random part, so that names sort by time). Its
metadata hold what a commit record holds for a unit, so a log has no records, no resume and no lease. A reader gets a
plan of the part files that were there when it listed them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ConfigError, SourceError, StorageError
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import LOG_VERSION, PLAN_FILE, Plan, open_plan, read_plan
from pipeline.dest.writer import STATUS_OK, OutputSpec, UnitWriter
from pipeline.storage.listing import ahead
from pipeline.storage.location import FileStat
from pipeline.storage.retries import retried
from pipeline.storage.storage import Storage

# After the columns of every output. `accepted` is null without a calibration, so that all part files have one schema.
LOG_FIELDS = (
    pa.field("accepted", pa.bool_()),
    pa.field("request_id", pa.string()),
    pa.field("model", pa.dictionary(pa.int32(), pa.string())),
    pa.field("time", pa.timestamp("us", tz="UTC")),
)
CLASS_NAMES_KEY = "shardlabel.class_names"
_RECORD_KEY = "shardlabel.record"
_PART = re.compile(r"part-[0-9]{8}T[0-9]{12}Z-[0-9a-f]{8}\.parquet")


def begin_log(dest: Storage) -> None:
    """Make a folder a prediction log, unless it is one already.

    Raises:
        ConfigError: It holds the output of a run.
        SourceError: It holds foreign Parquet files.
        StorageError: It cannot be written.
    """
    plan = read_plan(dest, logs=True)
    if plan is not None:
        if not plan.is_log:
            raise ConfigError(
                f"{dest.describe()} holds the output of a run of `label`; a prediction log needs a folder of its own"
            )
        return
    foreign = next((file.path for file in dest.list() if file.path.endswith(".parquet")), None)
    if foreign is not None:
        raise SourceError(f"{dest.describe()} already holds {foreign}, but no prediction log; give an empty folder")
    plan = Plan({"kind": "prediction log"}, units=0, shards=0, bytes=0, version=LOG_VERSION)
    # Every writer writes the same bytes: replicas may begin at the same time.
    dest.create(PLAN_FILE, json.dumps(replace(plan, id=plan.hashed()).values(), indent=1).encode())


def write_part(dest: Storage, output: OutputSpec, batches: Sequence[pa.RecordBatch], seconds: float, size: int) -> None:
    """Publish a part file.

    Args:
        dest: A prediction log.
        output: Layout of the rows.
        batches: The rows.
        seconds: Time in which they came.
        size: Bytes of their images.

    Raises:
        StorageError: It cannot be written; readers then see nothing of it.
    """
    statuses = Counter(status for batch in batches for status in batch["status"].to_pylist())
    ok = statuses.pop(STATUS_OK, 0)
    record = {"ok": ok, "errors": statuses, "seconds": round(seconds, 3), "bytes_read": size}
    temporary = dest.temporary_path()
    with UnitWriter(temporary, output.schema({_RECORD_KEY: json.dumps(record)})) as writer:
        for batch in batches:
            writer.write(batch)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    dest.publish(temporary, f"part-{now}-{uuid.uuid4().hex[:8]}.parquet")


def open_records(dest: Storage, blame: Callable[[str], None] | None = None) -> tuple[Plan, Iterator[Commit]]:
    """Return the plan and the commit records of an output, or their equivalents for a prediction log.

    For a log the footers are read. Its settings name the models of its rows, and their classes if all have the same.

    Args:
        dest: An output or a prediction log.
        blame: Called about each part file of a log that cannot be read, which is then skipped; if None, it is an error.

    Raises:
        SourceError: It is neither.
        ConfigError: The plan is damaged, or a part file does not belong to a log.
        StorageError: It cannot be read.
    """
    plan = open_plan(dest, logs=True)
    if not plan.is_log:
        return plan, CommitLog.of(dest, plan).records()
    files = [file for file in dest.list() if _PART.fullmatch(file.path)]
    footers = [one for one in ahead(files, lambda file: _read_footer(dest, file, blame)) if one is not None]
    settings = dict(plan.settings)
    for name, key in (("model", "model"), ("precision", "precision"), ("decode", "decode")):
        settings[name] = ", ".join(sorted({metadata[f"shardlabel.{key}"] for _, metadata in footers}))
    settings["labels"] = "name"
    models = {metadata["shardlabel.model"] for _, metadata in footers}
    classes = {metadata[CLASS_NAMES_KEY] for _, metadata in footers}
    settings["class names"] = classes.pop() if len(classes) == 1 else None
    plan = replace(
        plan, settings=settings, units=len(files), shards=len(models), parts=tuple(file.path for file in files)
    )
    return plan, (replace(commit, unit=unit) for unit, (commit, _) in enumerate(footers))


def foreign_files(dest: Storage) -> list[str]:
    """Return foreign Parquet files in a log: a reader of DEST/*.parquet would count them."""
    return [file.path for file in dest.list() if file.path.endswith(".parquet") and not _PART.fullmatch(file.path)]


def _read_footer(
    dest: Storage, file: FileStat, blame: Callable[[str], None] | None
) -> tuple[Commit, dict[str, str]] | None:
    """Return a part file's record and all of its metadata; None if it was reported to `blame`."""

    def read() -> pq.FileMetaData:
        with closing(dest.open_random(file.path)) as source:
            return pq.read_metadata(source)

    try:
        found = retried(f"read {dest.describe(file.path)}", read)
        metadata = {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}
        record = json.loads(metadata[_RECORD_KEY])
    except (StorageError, KeyError) as err:
        why = f"it has no {err}" if isinstance(err, KeyError) else str(err)
        if blame is not None:
            blame(f"{file.path}: {why}")
            return None
        raise StorageError(
            f"{dest.describe(file.path)} is not a part file of a prediction log, or is damaged: {why}"
        ) from err
    return Commit(0, file.path, rows=found.num_rows, size=file.size, sha256="", **record), metadata
