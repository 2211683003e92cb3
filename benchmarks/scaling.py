"""Images/s for 1 to 1000 nodes, from the measured cost of each stage: what limits, and where.

    python -m benchmarks.scaling --driver results/DRIVER.json --bulk results/BULK.json [--mode int8]
        [--update docs/scaling.md]

A model, no measurement: a node is `--cores` cores like those measured, with `--gigabits` of network. Each stage is a bound
on units/s, and the least one counts; then come the pauses between windows of units. docs/scaling.md says what is assumed.
The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.bulk_summary import summarise
from pipeline.job import MAX_WINDOW_UNITS, UNITS_PER_ACTOR, WINDOW_UNITS, window_units
from pipeline.operators.tasks import TASK_BYTES, TASKS_AHEAD

NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
UNIT_IMAGES = (100, 1_000, 10_000)
IMAGE_BYTES = 110_000
# What AWS says that S3 takes per prefix: https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
S3_PUTS_PER_S = 3_500
BEGIN, END = "<!-- made by benchmarks.scaling -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured.

    Attributes:
        core_rate: Images/s of one core in steady state, Ray's own processes beside it.
        driver_s: CPU seconds of the driver per task with no actors, and what each actor adds.
        gcs_s: CPU seconds of the GCS per task, at most.
        pool_s: Seconds from a new pool to its first result.
        session_s: Seconds to load the model.
        commit_s: Seconds per commit record, on a local disk.
    """

    core_rate: float
    driver_s: tuple[float, float]
    gcs_s: float
    pool_s: float
    session_s: float
    commit_s: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of equal nodes."""

    nodes: int
    cores: int
    gigabits: float

    @property
    def actors(self) -> int:
        return self.nodes * self.cores


def read_costs(driver: dict, bulk: dict, mode: str) -> Costs:
    """Take the costs from the results of `scaling_driver` and `bulk`."""
    ours = summarise(bulk)[mode]["ours"]["steady"]
    pools = driver["pools"]
    slope, base = np.polyfit([p["actors"] for p in pools], [p["driver_cpu_ms"] / 1e3 for p in pools], 1)
    base = base if slope > 0 else statistics.mean(p["driver_cpu_ms"] / 1e3 for p in pools)
    return Costs(
        core_rate=ours["median"] / bulk["machine"]["cores"],
        driver_s=(float(base), max(0.0, float(slope))),
        gcs_s=max(p["gcs_cpu_ms"] for p in pools) / 1e3,
        pool_s=pools[0]["first_result_s"],
        session_s=driver["session_s"],
        commit_s=driver["commits"]["wall_ms"] / 1e3,
    )


def units_in_task(unit_images: int, actors: int) -> int:
    """Return how many units of so many images go to an actor together, early in a window."""
    most = window_units(actors) // (TASKS_AHEAD * actors)
    return max(1, min(most, TASK_BYTES // (unit_images * IMAGE_BYTES)))


def bounds(costs: Costs, cluster: Cluster, unit_images: int) -> dict[str, float]:
    """Return the units/s that each stage allows."""
    busy = min(cluster.actors, window_units(cluster.actors))
    together = units_in_task(unit_images, cluster.actors)
    driver = (costs.driver_s[0] + costs.driver_s[1] * cluster.actors) / together + costs.commit_s
    return {
        "cores": busy * costs.core_rate / unit_images,
        "network": cluster.nodes * cluster.gigabits * 1e9 / 8 / (unit_images * IMAGE_BYTES),
        "driver": 1 / driver,
        "GCS": together / costs.gcs_s if costs.gcs_s else math.inf,
        "storage PUTs": S3_PUTS_PER_S,
    }


def images_per_s(costs: Costs, cluster: Cluster, unit_images: int) -> tuple[float, str]:
    """Return images/s of a long run, and what limits it.

    A window ends when its last unit is done, and the next begins with a new pool; so a window takes whole rounds of
    units, and a pause.
    """
    allowed = bounds(costs, cluster, unit_images)
    limit = min(allowed, key=lambda name: allowed[name])
    unit_s = unit_images / costs.core_rate
    window = window_units(cluster.actors)
    rounds = math.ceil(window / cluster.actors)
    working = max(window / allowed[limit], rounds * unit_s)
    pause = costs.pool_s + costs.session_s
    ideal = cluster.actors * costs.core_rate
    rate = window * unit_images / (working + pause)
    if limit == "cores" and rate < 0.9 * ideal:
        limit = "windows"
    return rate, limit


def table(costs: Costs, cores: int, gigabits: float) -> tuple[str, list[dict]]:
    """Return the model's figures as Markdown and as rows.

    Two figures where it matters whether the driver's cost per unit grows with the number of actors as it was seen to
    between a few, which is an extrapolation by a factor of hundreds, or not at all.
    """
    level = replace(costs, driver_s=(costs.driver_s[0], 0.0))
    lines = ["| nodes | actors | no loss, images/s | " + " | ".join(f"units of {n:,}" for n in UNIT_IMAGES) + " |",
             "|---|---|---|" + "---|" * len(UNIT_IMAGES)]  # fmt: skip
    rows = []
    for nodes in NODES:
        cluster = Cluster(nodes, cores, gigabits)
        ideal = cluster.actors * costs.core_rate
        cells = []
        for unit_images in UNIT_IMAGES:
            low, binds = images_per_s(costs, cluster, unit_images)
            high, binds_then = images_per_s(level, cluster, unit_images)
            rows.append({"nodes": nodes, "unit_images": unit_images, "least": round(low), "most": round(high),
                         "least_of_ideal": round(low / ideal, 3), "binds": binds, "binds_at_most": binds_then})  # fmt: skip
            if high < 1.05 * low:
                cells.append(f"{low:,.0f}: {low / ideal:.0%}, {binds}")
            else:
                names = binds if binds == binds_then else f"{binds}, {binds_then}"
                cells.append(f"{low:,.0f} to {high:,.0f}: {low / ideal:.0%} to {high / ideal:.0%}, {names}")
        lines.append(f"| {nodes:,} | {cluster.actors:,} | {ideal:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines), rows


def update(path: Path, text: str) -> None:
    """Put the table between the marks of a page."""
    page = path.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def describe(costs: Costs, mode: str) -> str:
    """Return the costs that went in, as Markdown."""
    base, slope = costs.driver_s
    return "\n".join([
        f"| cost (mode `{mode}`) | measured |", "|---|---|",
        f"| one core, steady | {costs.core_rate:.0f} images/s |",
        f"| driver, per task | {base * 1e3:.2f} ms CPU, and {slope * 1e6:.1f} µs for each actor |",
        f"| commit record, local disk | {costs.commit_s * 1e3:.3f} ms |",
        f"| units of 100 images in a task, at most | {units_in_task(100, 1)} |",
        f"| GCS, per task | {costs.gcs_s * 1e3:.2f} ms CPU |",
        f"| a new pool, to its first result | {costs.pool_s:.1f} s |",
        f"| a session | {costs.session_s:.2f} s |",
        f"| units handed over at a time | {UNITS_PER_ACTOR} an actor, {WINDOW_UNITS:,} to {MAX_WINDOW_UNITS:,} |",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", type=Path, required=True, help="results of benchmarks.scaling_driver")
    parser.add_argument("--bulk", type=Path, required=True, help="results of benchmarks.bulk, with ours in --mode")
    parser.add_argument("--mode", default="int8")
    parser.add_argument("--cores", type=int, default=16, help="of a node")
    parser.add_argument("--gigabits", type=float, default=10.0, help="of a node's network")
    parser.add_argument("--update", type=Path, help="page whose marked part the figures replace")
    options = parser.parse_args()
    costs = read_costs(json.loads(options.driver.read_text()), json.loads(options.bulk.read_text()), options.mode)
    text, rows = table(costs, options.cores, options.gigabits)
    text = f"{describe(costs, options.mode)}\n\n{text}"
    if options.update:
        update(options.update, text)
    print(text)
    print(json.dumps({"benchmark": "scaling", "mode": options.mode, "cores": options.cores, "rows": rows}))


if __name__ == "__main__":
    main()
