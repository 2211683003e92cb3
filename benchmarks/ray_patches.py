"""What each patch of Ray gains: a run of one tar with all patches, with none, and with each alone left out.

    python -m benchmarks.ray_patches --source 'samples/sample-00000.tar' [--rounds 3] [--model efficientnet-lite0]

Seconds from the command to its first file and to its exit, and CPU seconds of all its processes (as last seen, ten times a
second). The variants take turns; a patch's gain is the median, over the rounds, of how much more a run without it took
than the same round's run with all, with the least and the most. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from benchmarks.bulk_startup import first_file
from pipeline.patches.patch import SWITCH_VARIABLE
from pipeline.patches.patches import PATCHES

WHAT = ("first file", "exit", "cpu")


def run_once(source: str, model: str, switch: str) -> dict[str, float]:
    """Return when what happened, in seconds since the command, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        label = ["label", source, "--output", folder, "--model", model, "--progress", "none", "--overwrite"]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {SWITCH_VARIABLE: switch}
        began = time.time()
        done = measure.measure([sys.executable, "-m", "cluster.cli", *label], env=env, memory_every_s=float("inf"))
        if done["exit"]:
            raise SystemExit(f"{switch or 'all'}: exit code {done['exit']}: {done['said']}")
        first = first_file(Path(folder), "part-*.parquet")
        assert first is not None
        return {"first file": first - began, "exit": done["seconds"], "cpu": done["cpu_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="one tar")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="efficientnet-lite0")
    options = parser.parse_args()
    measure.EVERY_S = 0.1
    names = [patch.name for patch in PATCHES if patch.kind == "speed"]
    switches = {"all": "", "none": "off", **{f"without {name}": f"-{name}" for name in names}}
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in switches}
    run_once(options.source, options.model, "")  # fills the page cache
    for number in range(options.rounds):
        for variant, switch in switches.items():
            runs[variant].append(run_once(options.source, options.model, switch))
            print(number, variant, {what: round(value, 2) for what, value in runs[variant][-1].items()}, flush=True)
    figures = {}
    for variant, found in runs.items():
        figures[variant] = {what: sorted(round(run[what], 2) for run in found) for what in WHAT}
        for what in WHAT:
            more = [run[what] - run_all[what] for run, run_all in zip(found, runs["all"], strict=True)]
            figures[variant][f"{what} more"] = [round(f(more), 2) for f in (statistics.median, min, max)]
        text = ", ".join(f"{what} {statistics.median(figures[variant][what]):.2f}" for what in WHAT)
        more = ", ".join("{:+.2f} ({:+.2f} to {:+.2f})".format(*figures[variant][f"{what} more"]) for what in WHAT)
        print(f"{variant:28}{text}; more than with all: {more}")
    print(json.dumps({"benchmark": "ray_patches", "rounds": options.rounds, "seconds": figures}))


if __name__ == "__main__":
    main()
