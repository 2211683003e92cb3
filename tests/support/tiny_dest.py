"""A quickly made DEST: labelled without Ray, or with made-up rows."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.catalog import load_labels, load_spec
from models.decode.decode import DecodeMode, ImageLimits
from models.inference.classifier import Classifier
from models.spec import Precision
from pipeline.config import SourceFormat
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import cut_units, write_plan
from pipeline.dest.writer import OutputSpec
from pipeline.operators.stages import UnitSettings, label_here, label_unit
from pipeline.session.stage_clock import StageClock
from pipeline.sources.unit import Slice, Unit, part_name
from pipeline.storage.storage import Storage, open_storage


def make_dest(
    folder: Path,
    model: Path | str,
    *,
    finish: int | None = None,
    kind: SourceFormat = SourceFormat.WEBDATASET,
    precision: Precision = Precision.FP32,
) -> Storage:
    """Label folder/in to folder/out; `finish` limits the number of units."""
    spec = load_spec(str(model))
    source, dest = open_storage(str(folder / "in")), open_storage(str(folder / "out"))
    metadata = {
        "shardlabel.version": "0.0.9",
        "shardlabel.preprocessing": spec.preprocessing.model_dump_json(),
    }
    settings = UnitSettings(
        source=source, dest=dest, format=kind, mode=DecodeMode.EXACT, limits=ImageLimits(),
        preprocessing=spec.preprocessing, batch_size=4, output=OutputSpec(load_labels(spec), metadata),
    )  # fmt: skip
    slices = [Slice(file.path, file.size, file.etag) for file in source.list(recursive=True)]
    units = list(cut_units(slices, images=kind is SourceFormat.IMAGES))
    names = {
        "source": source.uri, "format": kind.value, "model": spec.name, "labels": "name",
        "class names": sha256("\n".join(load_labels(spec)).encode()).hexdigest(), "artifact": "ab" * 32, "precision": "fp32",
        "decode": "exact", "top-k": 2, "max-pixels": 10**8, "max-image-bytes": 2**26,
    }  # fmt: skip
    plan = write_plan(dest, units, names)
    log = CommitLog(dest, plan.units, plan.id)
    log.load()
    classifier = Classifier(spec, precision=precision, top_k=2)
    with log:
        for unit in units[:finish]:
            log.append(label_unit(settings, unit, label_here(classifier, StageClock(), embeddings=False)))
    return dest


def made_up_dest(folder: Path, rows: int, *, classes: int = 5000, name: str = "label {}") -> int:
    """Write a run of one unit with long texts, in which half the images have a label; return how many have one."""
    dest = open_storage(str(folder))
    plan = write_plan(dest, [Unit(0, (Slice("a.tar", 9, ""),))], {"source": "/nowhere", "model": "made up"})
    rng = np.random.default_rng(0)
    ids = rng.integers(0, classes, rows)
    ok = rng.random(rows) < 0.5
    long_text = pa.array(["x" * 500] * rows)
    columns = {
        "shard": long_text, "key": long_text, "label": pa.array([name.format(i) for i in ids], mask=~ok),
        "label_id": pa.array(ids, pa.int32(), mask=~ok), "score": pa.array(rng.random(rows), pa.float32(), mask=~ok),
        "status": pa.array(np.where(ok, "ok", "undecodable")), "error": long_text,
    }  # fmt: skip
    path = folder / part_name(0)
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=16_384)
    errors = {"undecodable": int((~ok).sum())}
    with CommitLog(dest, plan.units, plan.id) as log:
        log.append(Commit(0, path.name, rows, int(ok.sum()), errors, 1.0, 9, path.stat().st_size, ""))
    return int(ok.sum())
