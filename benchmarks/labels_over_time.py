"""Relabel and compare made-up outputs of ten million rows: seconds and peak memory. No image is read.

    python -m benchmarks.labels_over_time --rows 10000000

Two outputs are made up first: OLD and NEW, of a thousand classes, top 5, a thousand rows a unit, of which 3 % have another
label in NEW. Then, each step in a process of its own, whose peak memory is the operating system's own figure:

    plan   what `relabel` does before anything is labelled or copied: it reads OLD's plan and records, and counts the rows
           for which a condition holds (one row in 16, in every unit)
    none   the same for a condition that holds for 17 units: what statistics of row groups rule out is not read
    copy   `relabel` where no row is meant: every row is copied, with the column `model`
    diff   of OLD and NEW, unit by unit
    other  `diff` of OLD and the rows of NEW in units of four shards: joined by way of temporary files

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.inference.classifier import choose
from pipeline.config import LabelConfig
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.fingerprint import fingerprint
from pipeline.dest.finished import open_finished
from pipeline.dest.merge import Relabelling
from pipeline.dest.plan import write_plan
from pipeline.dest.writer import OutputSpec, UnitWriter
from pipeline.diff.compare import compare
from pipeline.operators.model_ref import settle_model
from pipeline.relabel.copy_units import matching_rows
from pipeline.relabel.job import relabel
from pipeline.relabel.where import parse_where
from pipeline.sources.source import open_source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage

UNIT_ROWS = 1_000
CLASSES = 1_000
TOP = 5
FLIPPED = 0.03
LOW = 1 / 16  # rows with a score below 0.5
MODEL = "efficientnet-lite0"


def make(folder: Path, rows: int, name: str, *, seed: int, shards: int = 1) -> None:
    """Write an output of so many rows, of units of so many shards."""
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "000000.tar").touch()
    config = LabelConfig(source=str(folder / "source"), output=str(folder / name), model=MODEL, top_k=TOP)
    config, spec, labels = settle_model(config)
    choice = choose(spec, config.device, config.precision, has_gpu=False)
    source, dest = open_source(config.source, config.format), open_storage(config.output)
    settings = fingerprint(config, source, spec, choice, labels)
    units = [
        Unit(number, tuple(Slice(f"{first + place:06d}.tar", 10**8, "") for place in range(shards)))
        for number, first in enumerate(range(0, rows // UNIT_ROWS, shards))
    ]
    plan = write_plan(dest, iter(units), settings)
    metadata = {"shardlabel.version": "0", "shardlabel.preprocessing": spec.preprocessing.model_dump_json()}
    schema = OutputSpec(labels, metadata).schema()
    log = CommitLog(dest, plan.units, plan.id)
    names = pa.array(labels)
    for unit in units:
        path = dest.temporary_path()
        with UnitWriter(path, schema) as writer:
            for piece in unit.slices:
                writer.write(_rows(piece.shard, names, schema, seed))
        content = path.read_bytes()
        path.rename(dest.path(unit.part))
        count = UNIT_ROWS * len(unit.slices)
        log.append(
            Commit(
                unit.number, unit.part, count, count, {}, 9.5, 10**8 * shards, len(content), sha256(content).hexdigest()
            )
        )
    log.flush()


def _rows(shard: str, names: pa.Array, schema: pa.Schema, seed: int) -> pa.RecordBatch:
    number = int(shard[:6])
    common, own = np.random.default_rng(number), np.random.default_rng([number, seed])
    ids = common.integers(0, CLASSES, (UNIT_ROWS, TOP), np.int32)
    flipped = own.random(UNIT_ROWS) < (FLIPPED if seed else 0)
    ids[flipped] = own.integers(0, CLASSES, (int(flipped.sum()), TOP), np.int32)
    scores = 0.5 + common.random((UNIT_ROWS, TOP), np.float32) / 2
    low = common.random(UNIT_ROWS) < LOW
    scores[low] -= 0.4
    scores[:, 0] += own.normal(0, 0.01, UNIT_ROWS).astype(np.float32) * seed
    if number % 588 == 0:  # 17 units of 10,000
        scores[0, 0] = 0.001
    offsets = pa.array(np.arange(UNIT_ROWS + 1, dtype=np.int32) * TOP)
    top = names.take(pa.array(ids.reshape(-1)))
    columns = {
        "shard": pa.array([shard] * UNIT_ROWS).dictionary_encode(),
        "key": pa.array([f"{number:06d}/{row:09d}" for row in range(UNIT_ROWS)]),
        "label": names.take(pa.array(ids[:, 0])), "label_id": pa.array(ids[:, 0]), "score": pa.array(scores[:, 0]),
        "top_labels": pa.ListArray.from_arrays(offsets, top),
        "top_ids": pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1))),
        "top_scores": pa.ListArray.from_arrays(offsets, pa.array(scores.reshape(-1))),
        "width": pa.array(np.full(UNIT_ROWS, 500, np.int32)), "height": pa.array(np.full(UNIT_ROWS, 375, np.int32)),
        "status": pa.array(["ok"] * UNIT_ROWS).dictionary_encode(), "error": pa.nulls(UNIT_ROWS, pa.string()),
    }  # fmt: skip
    return pa.RecordBatch.from_arrays([columns[one.name].cast(one.type) for one in schema], schema=schema)


def _count(folder: Path, condition: str) -> dict:
    old = open_finished(str(folder / "old"))
    opened_s = time.perf_counter()
    where = parse_where(condition, old.schema)
    counts = matching_rows(old, Relabelling(old.dest, where.expression, "", ""), np.ones(old.plan.units, np.bool_))
    return {
        "rows": int(old.rows.sum()), "matching_rows": int(counts.sum()), "matching_units": int((counts > 0).sum()),
        "count_seconds": round(time.perf_counter() - opened_s, 1),
    }  # fmt: skip


def _copy(folder: Path) -> dict:
    options = {"output": str(folder / "copy"), "progress": "none"}
    report = relabel(str(folder / "old"), options, "score < 0")
    assert report.status == "done"
    return {"copied": report.copied_now, "rows_per_s": round(report.copied_now / report.seconds)}


def _diff(folder: Path, name: str) -> dict:
    found = compare(str(folder / "old"), str(folder / name)).report
    assert (found.only_old, found.only_new) == (0, 0)
    return {"rows": found.both, "agreement": found.agreement, "flip_pairs": found.flip_pairs}


STEPS: dict[str, Callable[[Path], dict]] = {
    "plan": lambda folder: _count(folder, "score < 0.5 or status = 'unreachable'"),
    "none": lambda folder: _count(folder, "score < 0.01"),
    "copy": _copy,
    "diff": lambda folder: _diff(folder, "new"),
    "other": lambda folder: _diff(folder, "four"),
}


def main() -> None:
    """Make up the outputs, and run each step in a process of its own, or one of them in this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step:
        started = time.perf_counter()
        figures = STEPS[options.step](options.folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures |= {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        }
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "four").exists():
            make(folder, options.rows, "old", seed=0)
            make(folder, options.rows, "new", seed=1)
            make(folder, options.rows, "four", seed=1, shards=4)
        found = {}
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.labels_over_time", "--step", step, "--folder", str(folder)]
            found[step] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(step, found[step], file=sys.stderr)
    print(json.dumps({"rows": options.rows, **found}))


if __name__ == "__main__":
    main()
