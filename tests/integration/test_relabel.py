"""Relabelling: the rows that are meant come from the new model, the others stay, whatever dies meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.dest.merge import Relabelling
from pipeline.dest.verify import verify_dest
from pipeline.diff.compare import compare
from pipeline.relabel.job import relabel
from pipeline.relabel.report import RelabelReport
from pipeline.storage.storage import open_storage
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import parts
from tests.support.s3_place import Place
from tests.support.tiny_model import colour_shards
from tests.support.tiny_variant import tiny_variant


def again(old: Path | str, dest: Path | str, model: Path, where: str, **options: Any) -> RelabelReport:
    return relabel(str(old), {"output": str(dest), "model": str(model), "progress": "none", **options}, where)


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_the_rows_that_are_meant_are_labelled_anew_and_only_their_shards_are_read(tmp_path, tiny_model, monkeypatch):
    shards = colour_shards(tmp_path / "in", shards=4, samples=30)
    shards[3].write_bytes(shards[3].read_bytes()[:-9000])  # truncated: it has fewer rows
    other = tiny_variant(tiny_model, tmp_path / "m", -3.0)
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    label_without_ray(tmp_path / "in", tmp_path / "all-new", other)
    where = "label = 'red' and shard in ('shard-001.tar', 'shard-003.tar')"
    before = parts(tmp_path / "old")
    with monkeypatch.context() as patch:  # a run that dies once it has copied
        patch.setattr("pipeline.relabel.job.label_pending", lambda *_: None)
        halted = again(tmp_path / "old", tmp_path / "new", other, where)
    assert (halted.status, halted.units_done, halted.copied_now) == ("interrupted", 2, 60)

    report = again(tmp_path / "old", tmp_path / "new", other, where)
    staged = again(tmp_path / "old", tmp_path / "staged", other, where, shape="two-stage")

    old, new = pq.read_table(tmp_path / "old").to_pylist(), pq.read_table(tmp_path / "all-new").to_pylist()
    got = pq.read_table(tmp_path / "new").to_pylist()
    is_meant = [row["label"] == "red" and row["shard"] in ("shard-001.tar", "shard-003.tar") for row in old]
    assert 0 < sum(is_meant) < len(old) < 4 * 30
    assert [row.pop("model") for row in got] == ["other:fp32:fast" if one else "tiny:fp32:fast" for one in is_meant]
    assert got == [b if one else a for a, b, one in zip(old, new, is_meant, strict=True)]
    assert (report.status, report.relabelled_now, report.relabelled_units_now) == ("done", sum(is_meant), 2)
    assert report.bytes_read == shards[1].stat().st_size + shards[3].stat().st_size
    assert report.incomplete_shards == 1
    assert (staged.relabelled_now, staged.copied_now) == (sum(is_meant), len(old) - sum(is_meant))
    assert parts(tmp_path / "staged") == parts(tmp_path / "new")
    assert parts(tmp_path / "old") == before
    assert verify_dest(open_storage(str(tmp_path / "new"))).ok


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_shard_that_changed_since_is_named_and_no_part_is_made_of_it(tmp_path, tiny_model):
    shards = colour_shards(tmp_path / "in", shards=2, samples=6)
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    shards[0].write_bytes(shards[0].read_bytes() + bytes(1024))

    report = again(tmp_path / "old", tmp_path / "new", tiny_model, "label = 'red'")

    assert report.status == "failed"
    assert "shard-000.tar has changed since the run was planned" in str(report.failed)
    assert "part-00000.parquet" not in parts(tmp_path / "new")


@pytest.mark.ray
@pytest.mark.long
def test_a_relabelling_that_was_killed_is_finished_by_the_same_command(tmp_path, tiny_model):
    colour_shards(tmp_path / "in", shards=24, samples=300)
    other = tiny_variant(tiny_model, tmp_path / "m", -3.0)
    label_without_ray(tmp_path / "in", tmp_path / "old", tiny_model)
    words = ["relabel", tmp_path / "old", "--model", other, "--where", "label != 'green' and shard != 'shard-003.tar'"]
    command = [sys.executable, "-m", "cluster.cli", *map(str, words), "--json", "--output"]
    with subprocess.Popen(
        [*command, str(tmp_path / "new")], stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        until = time.monotonic() + 120
        while len(parts(tmp_path / "new")) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert 3 <= len(parts(tmp_path / "new")) < 24

    for name in ("new", "once"):
        done = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, check=True, timeout=240)
        assert json.loads(done.stdout.splitlines()[-1])["status"] == "done"

    assert parts(tmp_path / "new") == parts(tmp_path / "once")
    assert verify_dest(open_storage(str(tmp_path / "new"))).ok


def test_old_and_dest_may_be_in_an_object_store(place: Place, tmp_path, tiny_model):
    for path in colour_shards(tmp_path / "in"):
        place.put(f"in/{path.name}", path.read_bytes())
    label_without_ray(f"{place.uri}/in/*.tar", f"{place.uri}/old", tiny_model)

    report = again(f"{place.uri}/old", f"{place.uri}/new", tiny_model, "score < 0")

    assert (report.status, report.copied_now, report.bytes_read) == ("done", 15, 0)
    assert verify_dest(open_storage(f"{place.uri}/new")).ok
    relabelling = Relabelling(open_storage(f"{place.uri}/old"), pc.field("label") == "green", "new", "old")
    assert relabelling.wanted("part-00001.parquet").tolist() == [False, True, False, False, True]
    found = compare(f"{place.uri}/old", f"{place.uri}/new").report
    assert (found.both, found.agreement) == (15, 100)
