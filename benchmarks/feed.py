"""A week of a feed: seven appends of 300 images to one DEST; one is killed in the middle, one runs beside another.

    python -m benchmarks.feed [--source photos.tar] [--model efficientnet-lite0]

Each day brings shards of the images of --source (the bundled photographs), 300 in all, and the same command with `--append`.
On the third day the command is killed with SIGKILL once the first part of the day is there, and run again; on the fifth
two are started at once. At the end every image must be in DEST exactly once, and every file of a day be as it was on that
day. The seconds are of the whole command, Ray's start included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.chaos import digests

IMAGES, SHARDS, DAYS = 300, 6, 7
KILLED, SHARED = 3, 5


def bring(folder: Path, day: int, photos: list[tuple[str, bytes]]) -> None:
    """Write a day's shards."""
    each = IMAGES // SHARDS
    chosen = cycle(photos)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"day-{day}-{shard}.tar", "w") as tar:
            for number, (name, content) in enumerate(islice(chosen, each)):
                info = tarfile.TarInfo(f"{number:03d}{Path(name).suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def start(source: Path, dest: Path, model: str) -> subprocess.Popen[str]:
    """Start the day's command."""
    words = ["label", str(source / "*.tar"), "--output", str(dest), "--model", model, "--append", "--progress", "none"]
    return subprocess.Popen([sys.executable, "-m", "cluster.cli", *words], stdout=subprocess.PIPE, text=True)


def a_day(day: int, source: Path, dest: Path, model: str) -> float:
    """Run a day's command, killed or twice where the day says so; return the seconds of the last."""
    if day == KILLED:
        killed = start(source, dest, model)
        while len(list(dest.glob("*.parquet"))) <= (day - 1) * SHARDS and killed.poll() is None:
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    started = time.perf_counter()
    runs = [start(source, dest, model) for _ in range(2 if day == SHARED else 1)]
    codes = [(run.communicate(), run.returncode)[1] for run in runs]
    if any(codes):
        raise SystemExit(f"day {day}: exit codes {codes}")
    return time.perf_counter() - started


def main() -> None:
    """Read the options, run the week, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(Path(__file__).parents[1] / "models/samples/photos.tar"))
    parser.add_argument("--model", default="efficientnet-lite0")
    options = parser.parse_args()
    with tarfile.open(options.source) as tar:
        photos = [
            (one.name, tar.extractfile(one).read()) for one in tar if one.name.endswith((".jpg", ".png", ".webp"))
        ]
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder) / "feed", Path(folder) / "labels"
        source.mkdir()
        seconds, changed, before = [], 0, {}
        for day in range(1, DAYS + 1):
            bring(source, day, photos)
            seconds.append(round(a_day(day, source, dest, options.model), 1))
            after = digests(dest)
            changed += sum(after.get(name) != digest for name, digest in before.items())
            before = after
        rows = pq.read_table(dest, columns=["shard", "key"]).to_pylist()
        print(json.dumps({
            "images": DAYS * IMAGES, "rows": len(rows), "distinct": len({tuple(row.values()) for row in rows}),
            "old_files_changed": changed, "seconds_by_day": seconds,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
