"""How many nodes, hours and how much money a run takes: arithmetic on measured figures, and nothing else.

    python -m benchmarks.sizing [INPUTS.json] [--images 1e9] [--hours 24] [--cores 8] [--gpus 1] [--price 0.30]

INPUTS is `results/2026-11-24-sizing-inputs.json` unless given: measured figures with where each was measured. A figure
that is null was not measured, and what needs it is left out. `--cores` and `--gpus` are of one node, `--price` is of a
node-hour, in any currency. The last line of output is one JSON object.

    core-hours  = images / (images/s per core) / 3600
    nodes       = core-hours / cores / hours / scaling share
    node-hours  = nodes * hours                          cost = node-hours * price
    a GPU      = nodes with gpus GPUs, and decode cores = images/s per GPU / decoded images/s per core for each
    read        = images * bytes each / (hours * 3600)   units = as the plan joins shards (docs/decisions.md)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

INPUTS = Path(__file__).parent / "results/2026-11-24-sizing-inputs.json"
# As pipeline/dest/plan.py joins: the first shards stand alone, small ones beyond share a unit.
ALONE = 10_000
UNIT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """One way to run it.

    Attributes:
        way: What labels, and on what.
        images_per_s_node: Measured rate per core or GPU, times those of a node.
        nodes: Whole ones, for the hours that were asked for.
        node_hours: Of all.
        decode_cores: Besides, for GPUs.
        read_gb_per_s: All nodes together.
        cost: Where a price was given.
    """

    way: str
    images_per_s_node: float
    nodes: int
    node_hours: float
    decode_cores: int
    read_gb_per_s: float
    cost: float | None


@dataclass(frozen=True, slots=True)
class Around:
    """What a run takes beside its nodes; None where it was not measured."""

    shards: int
    units: int
    plan_s: float
    resume_compare_s: float
    driver_memory_mb: float
    driver_s: float | None
    gets: int
    puts: int
    input_tb: float
    output_gb: float | None


def sizes(
    inputs: dict[str, Any], *, images: float, hours: float, cores: int, gpus: int, price: float | None
) -> list[Size]:
    """Return a size per measured way to label.

    Args:
        inputs: Measured figures.
        images: How many.
        hours: To be done in.
        cores: Of a node.
        gpus: Of a node with GPUs.
        price: Of a node-hour.
    """
    # Not measured: as if every node did what one does. The text beside the table says so.
    share = inputs["scaling_share"]["value"] or 1.0
    read = images * inputs["image_bytes"]["value"] / (hours * 3600) / 1e9
    ways = [(name, figure["value"] * cores, 0) for name, figure in inputs["images_per_s_per_core"].items()]
    gpu = inputs["images_per_s_per_gpu"]["value"]
    decode = inputs["decode_images_per_s_per_core"]["value"]
    if gpu is not None:
        ways.append((f"{gpus} GPU", gpu * gpus, ceil(gpu * gpus / decode)))
    found = []
    for name, rate, decoders in ways:
        nodes = ceil(images / (rate * share) / 3600 / hours)
        node_hours = nodes * hours
        cost = None if price is None else round(node_hours * price, 2)
        found.append(Size(name, rate, nodes, node_hours, decoders * nodes, round(read, 2), cost))
    return found


def around(inputs: dict[str, Any], *, images: float, images_per_shard: int) -> Around:
    """Return what planning, the driver and storage take, in proportion to what was measured."""
    plan, each = inputs["plan"], inputs["requests_per_shard"]
    shard_bytes = images_per_shard * inputs["image_bytes"]["value"]
    shards = ceil(images / images_per_shard)
    joined = max(1, UNIT_BYTES // shard_bytes)
    units = min(shards, ALONE) + ceil(max(0, shards - ALONE) / joined)
    rate, row = inputs["driver_units_per_s"]["value"], inputs["row_bytes"]["value"]
    return Around(
        shards=shards,
        units=units,
        plan_s=round(plan["plan_s"] * shards / plan["shards"], 1),
        resume_compare_s=round(plan["compare_s"] * shards / plan["shards"], 1),
        driver_memory_mb=plan["memory_mb"],
        driver_s=None if rate is None else round(units / rate),
        gets=round(shards * each["get"]),
        puts=round(units * each["put"]),
        input_tb=round(images * inputs["image_bytes"]["value"] / 1e12, 1),
        output_gb=None if row is None else round(images * row / 1e9, 1),
    )


def table(found: list[Size], hours: float) -> str:
    """Return sizes as a Markdown table."""
    lines = [
        f"| way | images/s a node | nodes for {hours:g} h | node-hours | decode cores | read GB/s | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in found:
        cost = "" if size.cost is None else f"{size.cost:,.0f}"
        lines.append(
            f"| {size.way} | {size.images_per_s_node:,.0f} | {size.nodes:,} | {size.node_hours:,.0f} | "
            f"{size.decode_cores or ''} | {size.read_gb_per_s:g} | {cost} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", type=Path, default=INPUTS)
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--images-per-shard", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--price", type=float)
    given = parser.parse_args()
    inputs = json.loads(given.inputs.read_text(encoding="utf-8"))
    found = sizes(inputs, images=given.images, hours=given.hours, cores=given.cores, gpus=given.gpus, price=given.price)
    beside = around(inputs, images=given.images, images_per_shard=given.images_per_shard)
    print(table(found, given.hours))
    missing = [name for name, figure in inputs.items() if isinstance(figure, dict) and figure.get("value", 0) is None]
    print(f"\nnot measured, and so left out: {', '.join(missing) or 'nothing'}")
    print(json.dumps({"sizes": [asdict(size) for size in found], "around": asdict(beside), "not_measured": missing}))


if __name__ == "__main__":
    main()
