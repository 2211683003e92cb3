"""What an image costs the driver on GPUs: nodes that make up their pixels, each 10,000 images/s, through the real operators.

    python -m benchmarks.scaling_nodes [--nodes 1,2,4,8] [--rate 10000] [--images 200000] [--unit-images 100,2400]
        [--batch-size 256]

A node is an actor that makes up rows of 64 x 64 pixels in the place of reading and decoding, and an actor with a simulated
GPU of `--rate`; all on this machine, so that the images/s are of its cores. What holds for a cluster are the CPU
seconds: of the driver, which puts units together, compresses, publishes and records them, and of Ray's services. An image's
of the driver say how many images/s fill its core; it has one, but for compressing and hashing, which threads do. Counted
from the first unit that is done to the last. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from benchmarks.bulk import machine
from benchmarks.profile_bulk import cpu_by_kind
from models.device import DeviceChoice, Provider
from models.spec import Precision
from pipeline.config import LabelConfig, SourceFormat
from pipeline.dest.plan import units_of
from pipeline.dest.writer import STATUS_OK, Row
from pipeline.job import unit_settings
from pipeline.operators import dataset
from pipeline.operators.model_ref import ModelRef, settle_model
from pipeline.operators.staged import ReadDecode, _Piece
from pipeline.operators.units import End
from pipeline.session.attempts import RunState
from pipeline.session.pools import Pools
from pipeline.session.stage_clock import StageClock
from pipeline.sources.source import Source
from pipeline.sources.unit import Slice, Unit
from pipeline.storage.storage import open_storage

# Small, so that copying pixels is not what is measured; they are still nearly all of a block.
SIDE = 64


class MadeUpPixels(ReadDecode):
    """Gives as many rows for a unit as its slice has a limit of, and reads nothing."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        clock, piece = StageClock(), _Piece(self._settings)
        for unit in units_of([table]):
            (shard,) = unit.slices
            for place in range(shard.limit):
                if piece.is_full:
                    yield piece.table(clock)
                    piece = _Piece(self._settings)
                piece.next[:] = place % 256
                piece.add(unit, Row(shard.shard, f"{place:08d}", STATUS_OK, width=500, height=375), place)
            piece.ends[-1] = End(shard.limit).text()
        if piece.rows:
            yield piece.table(clock)


def run_nodes(nodes: int, unit_images: int, options: argparse.Namespace) -> dict:
    """Label so many images on so many nodes, and return what an image cost."""
    with tempfile.TemporaryDirectory() as folder:
        config = LabelConfig(source=(folder,), output=f"{folder}/out", model="efficientnet-lite0")
        config, spec, labels = settle_model(config)
        choice = DeviceChoice(Provider.SIMULATED, Precision.INT8, "", options.rate)
        source = Source(open_storage(folder), SourceFormat.WEBDATASET, lambda: iter(()))
        settings = unit_settings(config, source, spec, choice, labels)
        settings = replace(settings, preprocessing=settings.preprocessing.model_copy(update={"crop": SIDE}))
        pools = Pools((nodes, nodes), 1, 0, decoders=nodes, batch_size=options.batch_size, gpu_share=1)
        ref = ModelRef(spec, choice, labels, config.top_k, options.batch_size, 1, ray.put(b""), False, 60.0)
        labelling = dataset.Labelling(settings, ref, pools, RunState(f"nodes-{nodes}-{unit_images}"), lambda text: None)
        units = [
            Unit(n, (Slice(f"{n:08d}.tar", 1, "", limit=unit_images),)) for n in range(options.images // unit_images)
        ]
        first, done = None, 0
        for result in dataset.label_units(labelling, units, lambda: False):
            if result.commit is None:
                raise SystemExit(f"unit {result.unit} failed: {result.why}")
            done += 1
            if first is None:
                first, cpu, driver = time.perf_counter(), cpu_by_kind(os.getpid()), time.process_time()
        seconds, driver = time.perf_counter() - first, time.process_time() - driver
        spent = cpu_by_kind(os.getpid()) - cpu
    counted = (done - 1) * unit_images
    services = sum(value for name, value in spent.items() if name.startswith("Ray: "))
    return {
        "nodes": nodes,
        "unit_images": unit_images,
        "images": counted,
        "images_per_s_here": round(counted / seconds),
        "driver_us_per_image": round(1e6 * driver / counted, 2),
        "ray_services_us_per_image": round(1e6 * services / counted, 2),
        "driver_full_at_images_per_s": round(counted / driver),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="1,2,4,8")
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--images", type=int, default=200_000, help="in all, for each number of nodes")
    parser.add_argument("--unit-images", default="100,2400")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--into", type=Path, help="results file")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    counts = [int(text) for text in options.nodes.split(",")]
    ray.init(num_cpus=2 * max(counts) + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset.ReadDecode = MadeUpPixels
    runs = []
    for unit_images in map(int, options.unit_images.split(",")):
        for nodes in counts:
            runs.append(run_nodes(nodes, unit_images, options))
            print(runs[-1], flush=True)
    figures = {
        "benchmark": "scaling_nodes",
        "machine": machine(),
        "rate": options.rate,
        "batch_size": options.batch_size,
        "runs": runs,
    }
    if options.into is not None:
        options.into.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
