"""Draw from, and score, a DEST of ten million rows: seconds, and peak memory.

    python -m benchmarks.review --rows 10000000

The DEST is made up: 1,000 classes, top-5, a tenth of the images without a label, in units of --unit-rows, as shards of so
many images give them. Two draws follow, so that the second has one to keep clear of, and the score of the answers to
both. Pictures are left out (`--to csv`): they cost reading SOURCE. Each command is a process of its own, whose peak memory
is the operating system's own figure. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.storage.storage import open_storage
from tests.support.review_dest import make_review_dest

CLASSES = 1000


def make(folder: Path, rows: int, unit_rows: int) -> dict:
    """Write a plan, its parts and their records."""
    dest = open_storage(str(folder))
    units = -(-rows // unit_rows)
    make_review_dest(dest, units, unit_rows, classes=CLASSES, top_k=5)
    return {"units": units, "rows": units * unit_rows, "bytes": sum(file.size for file in dest.list())}


def measured(*words: str) -> dict:
    """Run the command; return its JSON, its seconds and its peak memory."""
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("shardlabel")), "review", *words, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    peak_mb = round(usage.ru_maxrss * 1024 / 1e6)
    cpu_s = round(usage.ru_utime + usage.ru_stime, 1)
    figures = {"seconds": round(time.perf_counter() - started, 1), "cpu_s": cpu_s, "peak_mb": peak_mb}
    return {**json.loads(output.splitlines()[-1]), **figures}


def answer(listing: Path, answers: Path) -> Path:
    """Fill in a list of answers with the true classes, which the keys tell."""
    with listing.open(newline="") as given, answers.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shard", "key", "label"])
        writer.writerows([row["shard"], row["key"], row["key"].partition("-")[2]] for row in csv.DictReader(given))
    return answers


def main() -> None:
    """Make up a DEST, draw twice, and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--unit-rows", type=int, default=10_000)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--by", default="margin")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dest = str(folder / "dest")
        made = make(folder / "dest", options.rows, options.unit_rows)
        asked = ("--by", options.by, "--per-class", str(options.per_class), "--to", "csv", "--output")
        draws = [measured("sample", dest, *asked, str(folder / f"draw-{number}")) for number in (1, 2)]
        files = [answer(folder / f"draw-{n}" / "answers.csv", folder / f"answers-{n}.csv") for n in (1, 2)]
        score = measured("score", dest, *map(str, files))
        del score["classes"], score["pooled"]
    print(json.dumps({"dest": made, "draws": draws, "score": score}))


if __name__ == "__main__":
    main()
