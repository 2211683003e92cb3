"""A prediction log: a DEST that any number of processes add part files to, at any time, and that is never finished.

Each part file is published whole, under a name of its own (the time, and a random part, so that names sort by time), and
says of itself what a commit record says of a unit's: so there are no records, nothing to resume, and nobody to wait for.
Whoever reads one finds the plan of what was there when it looked.
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

# Behind the columns of every output. `accepted` is null without a calibration, so that all part files have one schema.
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
    """Make a folder a prediction log; nothing happens where it is one.

    Raises:
        ConfigError: It holds the output of a run.
        SourceError: It holds Parquet files of others.
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
        raise SourceError(f"{dest.describe()} already holds {foreign}, and is no prediction log; give an empty folder")
    plan = Plan({"kind": "prediction log"}, units=0, shards=0, bytes=0, version=LOG_VERSION)
    # The same bytes whoever writes them: replicas may begin at once.
    dest.create(PLAN_FILE, json.dumps(replace(plan, id=plan.hashed()).values(), indent=1).encode())


def write_part(dest: Storage, output: OutputSpec, batches: Sequence[pa.RecordBatch], seconds: float, size: int) -> None:
    """Publish a part file.

    Args:
        dest: A prediction log.
        output: What the rows look like.
        batches: The rows.
        seconds: That they came in.
        size: Bytes of their images.

    Raises:
        StorageError: It cannot be written; nothing of it is then seen.
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
    """Return the plan and the commit records of an output, or what stands for them in a prediction log.

    Of a log the footers are read; its settings say of which models its rows are, and which classes if all have the same.

    Args:
        dest: Either.
        blame: Told of part files of a log that cannot be read, which are then passed over; without it they are an error.

    Raises:
        SourceError: There is neither.
        ConfigError: The plan is damaged, or a part file is none of a log.
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
    """Return Parquet files beside those of a log: a reader of all would count them."""
    return [file.path for file in dest.list() if file.path.endswith(".parquet") and not _PART.fullmatch(file.path)]


def _read_footer(
    dest: Storage, file: FileStat, blame: Callable[[str], None] | None
) -> tuple[Commit, dict[str, str]] | None:
    """Return what a part file says of itself, and all of its metadata; None where it is to blame."""

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
            f"{dest.describe(file.path)} is no part file of a prediction log, or damaged: {why}"
        ) from err
    return Commit(0, file.path, rows=found.num_rows, size=file.size, sha256="", **record), metadata
