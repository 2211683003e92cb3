"""Plan, resume, and append to, ten million shards: seconds, CPU, peak memory, bytes, and the objects a resume reads.

    python -m benchmarks.plan --shards 10000000

A generator stands for the listing of SOURCE: shards of 11 MB, a hundred images each, so ten million are a billion images.
Half of the units are then given commit records, as a run of --units-per-second writes them, and a resume is what a run
does before its first unit: read the plan and the records, and compare SOURCE with the plan. An append compares with a
SOURCE that has a hundredth more, before and behind what was planned, and extends the plan. Each step is a process of its
own, whose peak memory is the operating system's own figure. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pipeline.dest.commits import COMMITS_FOLDER, MERGE_FILES, Commit, CommitLog
from pipeline.dest.fingerprint import check_source
from pipeline.dest.growth import PlannedSlices
from pipeline.dest.plan import PLAN_FOLDER, cut_units, extend_plan, iter_units, read_plan, write_plan
from pipeline.sources.unit import Slice, part_name
from pipeline.storage.storage import Storage, open_storage

SHARD_BYTES = 11_000_000
IMAGES = 100


def listing(shards: int) -> Iterator[Slice]:
    """Stand for the listing of SOURCE, in its order."""
    return (Slice(f"train/{number // 10_000:05d}/{number:08d}.tar", SHARD_BYTES, "") for number in range(shards))


def plan(dest: Storage, shards: int, units_per_second: int) -> dict:
    """Divide and write."""
    made = write_plan(dest, cut_units(listing(shards)), {})
    size = sum(file.size for file in dest.list(PLAN_FOLDER))
    return {"units": made.units, "shards": made.shards, "plan_mb": round(size / 1e6, 1)}


def run_half(dest: Storage, shards: int, units_per_second: int) -> dict:
    """Write the records of half of the units, a file a second, merged as a run merges them."""
    made = read_plan(dest)
    log = CommitLog(dest, made.units, made.id)
    flushes = 0
    for number in range(made.units // 2):
        log.append(Commit(number, part_name(number), 2300, 2300, {}, 9.5, 253_000_000, 150_000, "0" * 64))
        if number % units_per_second == units_per_second - 1:
            log.flush()
            flushes += 1
            if flushes % MERGE_FILES == 0:
                log.merge()
    log.flush()
    return {"records": made.units // 2, "flushes": flushes}


def resume(dest: Storage, shards: int, units_per_second: int) -> dict:
    """Do what a run does before its first unit."""
    made = read_plan(dest)
    done, totals = CommitLog(dest, made.units, made.id).load()
    read_s = time.perf_counter()
    check_source(dest, made, listing(shards))
    compared_s = time.perf_counter()
    first = next(unit.number for unit in iter_units(dest, made) if not done[unit.number])
    assert first == made.units // 2 == totals.units
    commits = len(dest.list(COMMITS_FOLDER))
    return {
        "compare_seconds": round(compared_s - read_s, 1),
        "commit_objects_listed_and_read": commits,
        "plan_objects_read": len(dest.list(PLAN_FOLDER)),
    }


def append(dest: Storage, shards: int, units_per_second: int) -> dict:
    """Do what a run with --append does before its first unit."""
    made = read_plan(dest)
    half = shards // 200
    names = (f"{place}/{number:08d}.tar" for place in ("first", "untimely") for number in range(half))
    added = [Slice(name, SHARD_BYTES, "") for name in names]
    planned = PlannedSlices(dest, made)
    read_s = time.perf_counter()
    new = planned.new(chain(added[:half], listing(shards), added[half:]))
    grown = extend_plan(dest, made, cut_units(new, first=made.units))
    assert grown.shards == shards + 2 * half
    return {"new_shards": 2 * half, "compare_seconds": round(time.perf_counter() - read_s, 1)}


STEPS = {"plan": plan, "run_half": run_half, "resume": resume, "append": append}


def main() -> None:
    """Run each step in a process of its own, or one of them in this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000_000)
    parser.add_argument("--units-per-second", type=int, default=100)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--dest")
    options = parser.parse_args()
    if options.step:
        started = time.perf_counter()
        figures = STEPS[options.step](open_storage(options.dest), options.shards, options.units_per_second)
        figures |= {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time(), 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        }
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.plan", "--step", step, "--dest", str(Path(folder) / "dest")]
            command += ["--shards", str(options.shards), "--units-per-second", str(options.units_per_second)]
            found[step] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps({"shards": options.shards, "images": options.shards * IMAGES, **found}))


if __name__ == "__main__":
    main()
