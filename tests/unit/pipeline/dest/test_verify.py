from __future__ import annotations

import dataclasses
import subprocess
import sys

import onnxruntime
import pyarrow as pa
import pytest

from models.catalog import load_labels, load_spec
from models.decode.decode import DecodeMode, ImageLimits
from models.errors import SourceError
from models.inference.classifier import Classifier
from models.spec import Precision
from pipeline.config import SourceFormat
from pipeline.dest.commits import CommitLog
from pipeline.dest.plan import read_plan, write_plan
from pipeline.dest.verify import verify_dest
from pipeline.dest.writer import OutputSpec
from pipeline.operators.stages import UnitSettings, label_here, label_unit
from pipeline.session.stage_clock import StageClock
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage
from tests.support.tiny_model import colour_shards


@pytest.fixture
def dest(tmp_path, tiny_model):
    """A finished run of three units, made without Ray."""
    spec = load_spec(str(tiny_model))
    shards = colour_shards(tmp_path / "in", shards=3)
    dest = open_storage(str(tmp_path / "out"))
    settings = UnitSettings(
        source=open_storage(str(tmp_path / "in")), dest=dest, format=SourceFormat.WEBDATASET, mode=DecodeMode.EXACT,
        preprocessing=spec.preprocessing, limits=ImageLimits(), batch_size=4, output=OutputSpec(load_labels(spec), {}),
    )  # fmt: skip
    units = [Unit(i, (Slice(path.name, path.stat().st_size, ""),)) for i, path in enumerate(shards)]
    plan = write_plan(dest, units, {})
    log = CommitLog(dest, plan.units, plan.id)
    log.load()
    classifier = Classifier(spec, precision=Precision.FP32, top_k=2)
    with log:
        for unit in units:
            log.append(label_unit(settings, unit, label_here(classifier, StageClock(), embeddings=False)))
    return dest


def log_of(dest) -> CommitLog:
    log = CommitLog(dest, 3, read_plan(dest).id)
    log.load()
    return log


def test_a_finished_run_is_ok(dest):
    found = verify_dest(dest)

    assert (found.ok, found.units, found.finished, found.rows, found.faults) == (True, 3, 3, 15, [])


def test_a_record_says_what_its_rows_were_computed_with(dest):
    for record in log_of(dest).records():
        assert onnxruntime.__version__ in record.made_by
        assert f"pyarrow {pa.__version__}" in record.made_by


def test_one_wrong_byte_is_found(dest, tmp_path):
    part = tmp_path / "out" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    found = verify_dest(dest)

    assert not found.ok
    assert "part-00001.parquet: its SHA-256 differs" in found.faults[0]


def test_a_missing_part_is_found(dest, tmp_path):
    (tmp_path / "out" / "part-00002.parquet").unlink()

    assert "part-00002.parquet" in verify_dest(dest).faults[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"rows": 6}, "holds 5 rows, its commit record says 6", id="rows"),
        pytest.param({"ok": 4}, "holds 5 rows with status ok, its commit record says 4", id="ok"),
    ],
)
def test_a_record_that_says_something_else_is_found(dest, change, message):
    log = log_of(dest)
    records = list(log.records())
    for file in dest.list("_shardlabel/commits"):
        dest.delete(file.path)
    log = log_of(dest)
    with log:
        for record in records:
            log.append(dataclasses.replace(record, **(change if record.unit == 0 else {})))

    assert message in verify_dest(dest).faults[0]


def test_unfinished_units_and_files_of_nobody_are_found(dest, tmp_path):
    for file in dest.list("_shardlabel/commits"):
        dest.delete(file.path)
    (tmp_path / "out" / "part-00009.parquet").write_bytes(b"")

    faults = verify_dest(dest).faults

    assert "3 of 3 units are not finished, the first is 0" in faults
    assert any("part-00009.parquet: belongs to no unit of the plan" in fault for fault in faults)
    assert any("part-00000.parquet: its unit has no commit record yet" in fault for fault in faults)


@pytest.mark.parametrize("change", [{}, {"seconds": 9.0}, {"sha256": "1" * 64, "rows": 7}])
@pytest.mark.parametrize("first", [False, True])
def test_a_unit_with_two_records_is_good_where_its_part_is_of_one_of_them(dest, change, first):
    log = log_of(dest)
    records = list(log.records())
    other = dataclasses.replace(records[1], **change)
    if first:
        for name in log.names():
            dest.delete(f"_shardlabel/commits/{name}")
    log = log_of(dest)
    with log:
        for record in [other, *records] if first else [other]:
            log.append(record)
            log.flush()

    found = verify_dest(dest)

    assert (found.faults, found.finished, found.rows) == ([], 3, 15)


def test_a_unit_whose_part_is_of_none_of_its_records_is_blamed_once(dest, tmp_path):
    log = log_of(dest)
    [record, *_] = log.records()
    with log:
        log.append(dataclasses.replace(record, sha256="1" * 64))
    (tmp_path / "out" / record.part).write_bytes(b"other")

    assert verify_dest(dest).num_faults == 1


@pytest.mark.parametrize(
    "name", ["part-0.parquet", "part-000001.parquet", "part-².parquet", "part-00007.parquet", "x.parquet"]
)
def test_a_file_that_a_reader_would_read_too_is_found(dest, tmp_path, name):
    (tmp_path / "out" / name).write_bytes((tmp_path / "out" / "part-00001.parquet").read_bytes())

    found = verify_dest(dest)

    assert found.faults == [f"{name}: belongs to no unit of the plan; a reader of DEST/*.parquet reads it too"]


@pytest.mark.parametrize("name", ["commits-000000099-aaaaaaaa.jsonl", "commits-000000099-aaaaaaaa.parquet"])
@pytest.mark.parametrize("content", [b'{"unit": 1', b"PAR1", b'{"colour": 7}', b"\xff\xfe"])
def test_records_that_cannot_be_read_are_one_line_and_the_others_are_checked(dest, tmp_path, name, content):
    dest.write_bytes(f"_shardlabel/commits/{name}", content)

    found = verify_dest(dest)

    assert (found.num_faults, found.finished, found.rows) == (1, 3, 15)
    assert f"{name} is damaged, or of a newer version" in found.faults[0]
    assert "\n" not in found.faults[0]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "verify", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="holds no run of shardlabel"):
        verify_dest(open_storage(str(tmp_path)))
