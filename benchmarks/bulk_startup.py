"""Seconds from the command to the first committed file of 100 images, and to exit; and what they are made of.

    python -m benchmarks.bulk_startup --source 'samples/sample-00000.tar' [--runs 5] [--model efficientnet-lite0] [--imports]

What is seen from outside, so that the run is not slowed by looking: the start times of Ray's processes and actors, which
the kernel keeps, and the times of the files. Polled four times a second. `--imports` adds one run under
`-X importtime`: seconds of the driver's slowest imports, each with all that it brings. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bulk_summary import middle
from benchmarks.measure import TICKS_PER_S, descendants

POLL_S = 0.25
SLOW_IMPORT_S = 0.04


def start_times(root: int, seen: dict[int, tuple[str, float]]) -> None:
    """Note title and start (seconds since the epoch) of every process below one; titles change when an actor is born."""
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    for pid in descendants(root):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            continue
        if title:  # a process that has ended and is still listed has none
            seen[pid] = title, booted + ticks / TICKS_PER_S


def first(seen: dict[int, tuple[str, float]], wanted: Callable[[str], object]) -> float | None:
    return min((at for title, at in seen.values() if wanted(title)), default=None)


def first_file(folder: Path, pattern: str) -> float | None:
    return min((path.stat().st_mtime for path in folder.glob(pattern)), default=None)


def run_once(command: list[str], output: Path) -> dict[str, float | None]:
    """Run the command and return when what happened, in seconds since its start."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    seen: dict[int, tuple[str, float]] = {}
    while process.poll() is None:
        start_times(process.pid, seen)
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    ended = time.time()
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}")
    moments = {
        "Ray is started (gcs_server)": first(seen, lambda title: "gcs_server" in title),
        "plan written": first_file(output, "_shardlabel/plan*"),
        "raylet starts": first(seen, lambda title: re.search(r"raylet/raylet\b", title)),
        "first actor's process starts": first(seen, lambda title: re.match(r"ray::(?!IDLE)", title)),
        "first file published": first_file(output, "part-*.parquet"),
        "first commit record": first_file(output, "_shardlabel/commits/*"),
        "exit": ended,
    }
    return {what: None if at is None else round(at - began, 2) for what, at in moments.items()}


def slow_imports(command: list[str]) -> dict[str, float]:
    """Return the slowest imports of a Python command, by package, in seconds with all that each brings."""
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
    found: dict[str, float] = {}
    for line in done.stderr.splitlines():
        matched = re.match(r"import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)", line)
        if matched and matched[2].count(".") <= 1:
            found[matched[2]] = max(found.get(matched[2], 0.0), int(matched[1]) / 1e6)
    slow = {name: round(s, 3) for name, s in found.items() if s >= SLOW_IMPORT_S}
    return dict(sorted(slow.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="one tar")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--more", default="", help="further options of `shardlabel label`")
    parser.add_argument("--imports", action="store_true")
    options = parser.parse_args()
    if not glob.glob(options.source):  # noqa: PTH207 (an absolute pattern)
        raise SystemExit(f"--source: no file matches {options.source}")
    runs = []
    with tempfile.TemporaryDirectory() as folder:

        def command(output: str) -> list[str]:
            label = ["label", options.source, "--output", str(Path(folder) / output), "--model", options.model]
            return [sys.executable, "-m", "cluster.cli", *label, "--progress", "none", *shlex.split(options.more)]

        run_once(command("warm"), Path(folder) / "warm")  # builds the joined graph, and fills the page cache
        for number in range(options.runs):
            runs.append(run_once(command(str(number)), Path(folder) / str(number)))
        imports = None
        if options.imports:
            # Of Ray in a process of its own: the command keeps what Ray says while it starts off the terminal.
            of_ray = slow_imports([sys.executable, "-c", "import ray, ray.data, pipeline.operators.dataset"])
            imports = {**of_ray, **slow_imports(command("imports"))}
    figures = {what: middle([run[what] for run in runs if run[what] is not None]) for what in runs[0]}
    print(f"{'seconds since the command':34}{'median':>8}{'least':>8}{'most':>8}")
    for what, figure in sorted(figures.items(), key=lambda item: item[1]["median"] if item[1] else float("inf")):
        if figure is not None:
            print(f"{what:34}{figure['median']:8.2f}{figure['min']:8.2f}{figure['max']:8.2f}")
    for name, seconds in (imports or {}).items():
        print(f"import {name:27}{seconds:8.3f}")
    print(json.dumps({"benchmark": "bulk_startup", "seconds": figures, "imports": imports}))


if __name__ == "__main__":
    main()
