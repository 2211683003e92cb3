"""The whole command over shards of some kB that claim GB: it ends well, no worker grows, and the good rows are there."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.hostile_shards import CARRIED, CARRYING, KEY, KEYED, PARQUETS, TARS, write
from tests.support.peak_memory import PeakMemory, children, named
from tests.support.shard_factory import parquet_bytes
from tests.support.tiny_model import colour_shards

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3600)]

MOST_BYTES = 10**9


def label(source: Path, output: Path, model: Path, *options: str) -> tuple[int, dict[int, int]]:
    """Run the command; return its exit code and the most private memory of each worker."""
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "label",
        str(source),
        "--output",
        str(output),
        "--model",
        str(model),
    ]
    with subprocess.Popen([*command, "--top-k", "3", "--progress", "none", *options]) as process:
        with PeakMemory(lambda: named(children(os.getpid()), "ray::")) as watched:
            code = process.wait()
        return code, watched.peaks


def good_rows(output: Path, prefix: str) -> list[tuple[str, str]]:
    rows = pq.read_table(output, columns=["shard", "status"]).to_pylist()
    return [(row["shard"], row["status"]) for row in rows if row["shard"].startswith(prefix)]


def test_tars(tmp_path: Path, tiny_model: Path) -> None:
    write(tmp_path / "in", TARS)
    colour_shards(tmp_path / "in", shards=3, samples=5)

    code, peaks = label(tmp_path / "in", tmp_path / "out", tiny_model)

    assert code == 0
    assert peaks
    assert max(peaks.values()) <= MOST_BYTES, peaks
    assert [status for _, status in good_rows(tmp_path / "out", "shard-")] == ["ok"] * 15


@pytest.mark.parametrize(
    ("shards", "options"),
    [(PARQUETS, ()), (KEYED, ("--key-column", KEY)), (CARRYING, ("--carry", CARRIED))],
    ids=["images", "keys", "carried"],
)
def test_parquet(tmp_path: Path, tiny_model: Path, shards: dict, options: tuple[str, ...]) -> None:
    write(tmp_path / "in", shards)
    table = pq.read_table(io.BytesIO(parquet_bytes()))
    for name in ("a-good.parquet", "z-good.parquet"):
        pq.write_table(
            table.append_column(KEY, table["name"]).append_column(CARRIED, table["name"]), tmp_path / "in" / name
        )

    code, peaks = label(tmp_path / "in", tmp_path / "out", tiny_model, "--image-column", "image", *options)

    assert code == 0
    assert peaks
    assert max(peaks.values()) <= MOST_BYTES, peaks
    for name in ("a-good", "z-good"):
        assert [status for _, status in good_rows(tmp_path / "out", name)] == ["ok"] * 20
