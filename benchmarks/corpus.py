"""What becomes of bad images and bad shards: the console command over all that the tests know of them.

    python -m benchmarks.corpus [--shape auto]

Prints one JSON object: kinds of images and of shards, rows by status, the exit code, and the peak memory of all processes.
The exit code is 1 if an image of the corpus has another status than it must have, or is not one row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.measure import measure
from tests.support.hostile_images import HOSTILE
from tests.support.hostile_shards import PARQUETS, TARS, write
from tests.support.image_corpus import LIMITS, corpus
from tests.support.shard_factory import BAD_PARQUETS, BAD_TARS, ODD_TARS, Shard
from tests.support.tiny_model import build_tiny_model, colour_shards, write_tar


def write_shards(folder: Path, shards: dict[str, Shard]) -> None:
    """Write each under the name of its case."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shard in shards.items():
        (folder / f"{name}.{shard.name.partition('.')[2]}").write_bytes(shard.content)


def label(source: Path, output: Path, model: Path, shape: str) -> dict:
    """Run the command; formats are not mixed in one run."""
    command = [sys.executable, "-m", "cluster.cli", "label", str(source), "--output", str(output), "--model", str(model),
               "--top-k", "3", "--max-image-bytes", str(LIMITS.max_image_bytes), "--shape", shape, "--json",
               "--progress", "none"]  # fmt: skip
    figures = measure(command)
    said = figures["said"] if isinstance(figures["said"], dict) else {}
    return {
        "exit": figures["exit"],
        "seconds": figures["seconds"],
        "peak_memory_mb": figures["peak_memory_mb"],
        "processes": figures["processes"],
        "status": said.get("status"),
        "rows": said.get("images"),
        "rows_by_status": {"ok": said.get("ok"), **said.get("errors", {})},
        "incomplete_shards": said.get("incomplete_shards"),
    }


def wrong_images(output: Path) -> list[str]:
    """Return the images of the corpus that are not one row of the status they must have, and hostile ones without one."""
    rows = pq.read_table(output, columns=["shard", "key", "status"]).to_pylist()
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["shard"] in ("corpus.tar", "hostile.tar"):
            found.setdefault(row["key"], []).append(row["status"])
    return [case.name for case in corpus() if found.get(case.name) != [case.status]] + [
        name for name in HOSTILE if found.get(name) not in (["ok"], ["undecodable"])
    ]


def main() -> int:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="auto", help="auto, fused or two-stage")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SHARDLABEL_HOME"] = str(folder / "home")
        model = build_tiny_model(folder)
        colour_shards(folder / "tars", shards=3, samples=5)
        write_shards(folder / "tars", {**BAD_TARS, **ODD_TARS})
        write_tar(folder / "tars" / "corpus.tar", {f"{case.name}.{case.extension}": case.data for case in corpus()})
        hostile = {f"{name}.jpg": maker(LIMITS.max_image_bytes // 2) for name, maker in HOSTILE.items()}
        write_tar(folder / "tars" / "hostile.tar", hostile)
        write_shards(folder / "parquet", BAD_PARQUETS)
        write(folder / "tars", TARS)
        write(folder / "parquet", PARQUETS)
        tars = label(folder / "tars", folder / "out-tars", model, options.shape)
        parquet = label(folder / "parquet", folder / "out-parquet", model, options.shape)
        wrong = wrong_images(folder / "out-tars") if tars["exit"] == 0 else [case.name for case in corpus()]
    expected: dict[str, int] = {}
    for case in corpus():
        expected[case.status] = expected.get(case.status, 0) + 1
    figures = {
        "kinds_of_images": len(corpus()) + len(HOSTILE),
        "images_by_expected_status": expected,
        "kinds_of_shards": len(BAD_TARS) + len(ODD_TARS) + len(BAD_PARQUETS) + len(TARS) + len(PARQUETS),
        "wrong_images": wrong,
        "exit": max(tars["exit"], parquet["exit"]),
        "peak_memory_mb": max(tars["peak_memory_mb"], parquet["peak_memory_mb"]),
        "tars": tars,
        "parquet": parquet,
    }
    print(json.dumps(figures))
    return int(bool(wrong) or figures["exit"] != 0)


if __name__ == "__main__":
    sys.exit(main())
