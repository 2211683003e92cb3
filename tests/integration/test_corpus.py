"""A source of bad images and bad shards: every image is one row, every loss is told, and nothing else suffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import LabelConfig
from pipeline.job import RunReport, run
from tests.support.image_corpus import LIMITS, corpus
from tests.support.shard_factory import BAD_PARQUETS, BAD_TARS, ODD_TARS, Shard, parquet_bytes
from tests.support.tiny_model import colour_shards, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

GOOD_SHARDS, GOOD_SAMPLES = 3, 5


def label(source: Path, output: Path, model: Path) -> tuple[RunReport, list[dict]]:
    report = run(
        LabelConfig(source=(str(source),), output=str(output), model=str(model), top_k=3, progress="none",
                    max_image_bytes=LIMITS.max_image_bytes)
    )  # fmt: skip
    return report, pq.read_table(output).to_pylist()


def write_shards(folder: Path, shards: Mapping[str, Shard]) -> dict[str, Shard]:
    """Write each shard under the name of its case; return them by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name + "." + shard.name.partition(".")[2]: shard for name, shard in shards.items()}
    for name, shard in named.items():
        (folder / name).write_bytes(shard.content)
    return named


def check_shards(named: Mapping[str, Shard], report: RunReport, rows: list[dict]) -> None:
    """Compare what was made of each shard with what it says of itself; `ok` there means read, not decoded."""
    for name, shard in named.items():
        of_shard = [row for row in rows if row["shard"] == name]
        assert Counter(row["key"] for row in of_shard) == Counter([*shard.ok, *shard.other]), name
        statuses = {row["key"]: row["status"] for row in of_shard if row["key"] in shard.other}
        assert statuses == shard.other, name
        if shard.missing is None:
            assert name not in report.incomplete, report.incomplete.get(name)
        else:
            assert shard.missing in report.incomplete[name]


def test_bad_images_and_bad_tars_beside_good_ones(tmp_path, tiny_model):
    source = tmp_path / "in"
    colour_shards(source, shards=GOOD_SHARDS, samples=GOOD_SAMPLES)
    half = len(corpus()) // 2
    for number, cases in enumerate((corpus()[:half], corpus()[half:])):
        write_tar(source / f"corpus-{number}.tar", {f"{case.name}.{case.extension}": case.data for case in cases})
    named = write_shards(source, BAD_TARS | ODD_TARS)

    report, rows = label(source, tmp_path / "out", tiny_model)

    assert (report.status, report.failure) == ("done", None)
    assert report.units_done == report.units
    assert report.images == len(rows)
    found = [row for row in rows if row["shard"].startswith("corpus-")]
    assert [row["key"] for row in found] == [case.name for case in corpus()]
    for row, case in zip(found, corpus(), strict=True):
        assert (row["status"], row["width"], row["height"]) == (case.status, case.width, case.height), case.name
        assert (row["label"] is None, row["error"] is None) == (case.status != "ok", case.status == "ok"), case.name
    check_shards(named, report, rows)
    losing = {name for name, shard in named.items() if shard.missing is not None}
    assert set(report.incomplete) == losing
    assert report.incomplete_shards == len(losing)
    good = [row for row in rows if row["shard"].startswith("shard-")]
    assert [row["label"] for row in good] == ["red", "green", "blue", "red", "green"] * GOOD_SHARDS


def test_bad_parquet_files_beside_good_ones(tmp_path, tiny_model):
    source = tmp_path / "in"
    named = write_shards(source, BAD_PARQUETS)
    good = ("a-good.parquet", "z-good.parquet")
    for name in good:
        (source / name).write_bytes(parquet_bytes())

    report, rows = label(source, tmp_path / "out", tiny_model)

    assert (report.status, report.images) == ("done", len(rows))
    check_shards(named, report, rows)
    assert set(report.incomplete) == {name for name, shard in named.items() if shard.missing is not None}
    for name in good:
        assert [(row["key"], row["status"]) for row in rows if row["shard"] == name] == [
            (str(i), "ok") for i in range(20)
        ]
