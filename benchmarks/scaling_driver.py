"""What a task costs the driver, whatever is in it: one unit each that does no work, through the Ray Data calls of real ones.

    python -m benchmarks.scaling_driver [--units 1500] [--actors 2,8,24] [--into results/FILE.json]

Ray is told of more CPUs than there are, so that one machine holds many actors; these return at once. Measured for each
number of actors: seconds until the pool's first result, units/s after it (a lower bound: actors, driver and Ray's services
share the machine's cores), and CPU seconds per task of the driver, of the GCS and of the raylet. Then the commit log alone,
on a local disk. The last line of output is one JSON object; `benchmarks.scaling` reads it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from benchmarks.bulk import machine
from benchmarks.profile_bulk import cpu_by_kind
from models.catalog import load_spec
from models.inference.classifier import Classifier
from models.spec import Precision
from pipeline.dest.commits import Commit, CommitLog
from pipeline.dest.plan import units_of, units_table
from pipeline.operators.units import Result, results_of, results_table
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage


def commit(number: int) -> Commit:
    """Return a record like a real one."""
    return Commit(unit=number, part=f"part-{number:05d}.parquet", rows=100, ok=100, errors={}, seconds=0.5,
                  bytes_read=11_000_000, size=9_000, sha256="0" * 64)  # fmt: skip


class NoWork:
    """An actor that gives each unit its record at once."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return results_table([Result(unit.number, commit(unit.number)) for unit in units_of([batch])])


def run_pool(units: int, actors: int) -> dict:
    """Send units through a pool and measure."""
    began = time.perf_counter()
    blocks = [units_table([Unit(number, (Slice(f"{number}.tar", 11_000_000, ""),))]) for number in range(units)]
    results = ray.data.from_blocks(blocks).map_batches(
        NoWork,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
    )
    first = cpu = None
    done = 0
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        done += sum(1 for _ in results_of(batch))
        if first is None:
            first, cpu, before = time.perf_counter(), cpu_by_kind(os.getpid()), done
    seconds, spent, counted = time.perf_counter() - first, cpu_by_kind(os.getpid()) - cpu, done - before
    return {
        "actors": actors,
        "units": done,
        "first_result_s": round(first - began, 2),
        "units_per_s": round(counted / seconds, 1),
        "driver_cpu_ms": round(1e3 * spent["driver"] / counted, 3),
        "gcs_cpu_ms": round(1e3 * spent["Ray: gcs_server"] / counted, 3),
        "raylet_cpu_ms": round(1e3 * spent["Ray: raylet/raylet"] / counted, 3),
    }


def commit_cost(records: int) -> dict:
    """Return CPU and wall time of a record in the log, with the writes of every FLUSH_SECONDS and the merges."""
    with tempfile.TemporaryDirectory() as folder:
        log = CommitLog(open_storage(folder), records)
        wall, cpu = time.perf_counter(), time.process_time()
        with log:
            for number in range(records):
                log.append(commit(number))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        started = time.perf_counter()
        done, _ = CommitLog(open_storage(folder), records).load()
        assert done.all()
        loaded = time.perf_counter() - started
    return {"records": records, "cpu_ms": round(1e3 * cpu / records, 4), "wall_ms": round(1e3 * wall / records, 4),
            "load_ms": round(1e3 * loaded / records, 4)}  # fmt: skip


def session_seconds() -> float:
    """Return how long the bundled model takes to load from its joined graph, as an actor does."""
    spec = load_spec("efficientnet-lite0")
    Classifier(spec, precision=Precision.INT8)
    began = time.perf_counter()
    Classifier(spec, precision=Precision.INT8)
    return round(time.perf_counter() - began, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1500)
    parser.add_argument("--actors", default="2,8,24")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "results" / "driver.json")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    counts = [int(text) for text in options.actors.split(",")]
    ray.init(num_cpus=max(counts) + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    run_pool(50, counts[0])  # imports, and the first worker processes
    pools = [run_pool(options.units, actors) for actors in counts]
    ray.shutdown()
    figures = {"date": str(datetime.date.today()), "machine": machine(), "pools": pools,
               "commits": commit_cost(20 * options.units), "session_s": session_seconds()}  # fmt: skip
    options.into.parent.mkdir(parents=True, exist_ok=True)
    options.into.write_text(json.dumps(figures, indent=2) + "\n")
    for pool in pools:
        print(pool)
    print(json.dumps({"benchmark": "scaling_driver", **figures}))


if __name__ == "__main__":
    main()
