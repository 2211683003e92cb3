"""A made-up DEST whose labels are right as often as their scores say, and whose keys contain the true class."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import Plan, cut_units, extend_plan, write_plan
from pipeline.dest.writer import ROW_GROUP_ROWS, OutputSpec
from pipeline.review.draws import DrawnRow
from pipeline.sources.unit import Slice, part_name
from pipeline.storage.storage import Storage

SETTINGS = {"source": "/nowhere", "format": "webdataset", "model": "made up", "max-pixels": 9, "max-image-bytes": 9}
METADATA = {"shardlabel.version": "0", "shardlabel.preprocessing": "{}"}


def made_up_rows(unit: int, rows: int, *, classes: int = 5, top_k: int = 3, failed: float = 0.1) -> pa.Table:
    """Return the rows of a unit, with classes of uneven sizes; `failed` is the share of images without a label."""
    rng = np.random.default_rng(unit)
    ids = (classes * rng.random(rows) ** 2).astype(np.int32)
    score = (0.4 + 0.6 * rng.random(rows) ** 0.5).astype(np.float32)
    truth = np.where(rng.random(rows) < score, ids, (ids + 1) % classes)
    rest = (1 - score)[:, None] * np.linspace(0.6, 0.1, top_k - 1, dtype=np.float32)[None] if top_k > 1 else None
    top = np.column_stack([score, rest]) if rest is not None else score[:, None]
    failing = rng.random(rows) < failed
    good = pa.array(np.where(failing, None, np.arange(rows)), pa.int64())
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * top_k)
    names = pa.array([f"class {i}" for i in range(classes)])
    keys = np.char.add(np.char.mod("%08d-", np.arange(rows)), np.char.mod("%d", truth))
    columns = {
        "shard": pa.array([f"{unit:05d}.tar"]).take(pa.array(np.zeros(rows, np.int32))).dictionary_encode(),
        "key": pa.array(keys.tolist()),
        "label": names.take(pa.array(ids)).take(good),
        "label_id": pa.array(ids).take(good),
        "score": pa.array(score).take(good),
        "top_labels": pa.ListArray.from_arrays(offsets, names.take(pa.array(np.repeat(ids, top_k)))).take(good),
        "top_ids": pa.ListArray.from_arrays(offsets, pa.array(np.repeat(ids, top_k))).take(good),
        "top_scores": pa.ListArray.from_arrays(offsets, pa.array(top.reshape(-1))).take(good),
        "width": pa.array(np.full(rows, 500, np.int32)),
        "height": pa.array(np.full(rows, 375, np.int32)),
        "status": pa.array(np.where(failing, "undecodable", "ok")).dictionary_encode(),
        "error": pa.array(np.where(failing, "JPEG cannot be decoded", None), pa.string()),
    }
    schema = OutputSpec((), METADATA).schema()
    return pa.table([columns[one.name].cast(one.type) for one in schema], schema=schema)


def make_review_dest(
    dest: Storage, units: int, rows: int, *, before: Plan | None = None, group: int = ROW_GROUP_ROWS, **options: float
) -> Plan:
    """Write a finished run of `units` units of `rows` rows each, or append the units to the plan `before`."""
    first = before.units if before else 0
    slices = [Slice(f"{number:05d}.tar", 9, "") for number in range(first, first + units)]
    made = cut_units(slices, first=first)
    plan = write_plan(dest, made, SETTINGS) if before is None else extend_plan(dest, before, made)
    log = CommitLog.of(dest, plan)
    log.load()
    with log:
        for unit in range(first, first + units):
            table = made_up_rows(unit, rows, **options)
            content = part_bytes(table, group)
            dest.write_bytes(part_name(unit), content)
            ok = rows - table["label_id"].null_count
            log.append(Commit(unit, part_name(unit), rows, ok, {"undecodable": rows - ok}, 1.0, 9, len(content), ""))
    return plan


def part_bytes(table: pa.Table, group: int = ROW_GROUP_ROWS) -> bytes:
    """Return a part file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=group)
    return sink.getvalue().to_pybytes()


def truth_of(row: DrawnRow) -> int:
    """Return the class that a made-up image shows."""
    return int(row.key.partition("-")[2])


def write_true_answers(path: Path, rows: Iterable[DrawnRow]) -> Path:
    """Write the answers of a reviewer who is always right, as class numbers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shard", "key", "label"])
        writer.writerows([row.shard, row.key, truth_of(row)] for row in rows)
    return path
