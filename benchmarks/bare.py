"""The rate of the bare machine: one process per core, the same decode and model, no framework.

    python -m benchmarks.bare 'shards/*.tar' --model efficientnet-lite0 [--repeat 20]

What bounds it: one core's decode and inference, times cores. It keeps labels in memory and commits nothing, so it is the
most that any tool built on the same two libraries can reach here. `end_to_end` counts from the start of the work to the
last label; `steady` from the moment every process has its session to the last label.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import tarfile
import time
from pathlib import Path

import numpy as np

BATCH_SIZE = 16


def worker(model: str, mode: str, shards: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    """Label shards until there are none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from models.catalog import load_spec
    from models.classifier import Classifier, Device, choose
    from models.decode import DecodeMode, ImageLimits, decode_image

    spec = load_spec(model)
    choice = choose(spec, Device.CPU, "auto", has_gpu=False)
    classifier = Classifier(spec, precision=choice.precision)
    limits, side = ImageLimits(), spec.preprocessing.crop
    pixels = np.empty((BATCH_SIZE, side, side, 3), np.uint8)
    results.put(("ready", os.getpid()))
    while (path := shards.get()) is not None:
        labels = []
        waiting = 0
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".jpg"):
                    continue
                data = tar.extractfile(member).read()
                decode_image(data, spec.preprocessing, DecodeMode(mode), limits, out=pixels[waiting])
                waiting += 1
                if waiting == BATCH_SIZE:
                    labels.append(classifier.predict(pixels).label_ids)
                    waiting = 0
        if waiting:
            labels.append(classifier.predict(pixels[:waiting]).label_ids)
        results.put(("labels", sum(len(batch) for batch in labels)))
    results.put(("done", time.perf_counter()))


def run(paths: list[str], model: str, mode: str, processes: int) -> dict:  # noqa: C901 (one loop, three messages)
    """Label all shards and return the figures."""
    context = multiprocessing.get_context("spawn")
    shards, results = context.Queue(), context.Queue()
    started = time.perf_counter()
    workers = [context.Process(target=worker, args=(model, mode, shards, results)) for _ in range(processes)]
    for process in workers:
        process.start()
    ready = done = images = 0
    steady_from = ended = started
    for path in paths:
        shards.put(path)
    for _ in workers:
        shards.put(None)
    counted_before = 0
    while done < processes:
        try:
            kind, value = results.get(timeout=1)
        except queue.Empty:
            if any(process.exitcode for process in workers):
                raise SystemExit("a worker died") from None
            continue
        if kind == "ready":
            ready += 1
            if ready == processes:
                steady_from, counted_before = time.perf_counter(), images
        elif kind == "labels":
            images += value
            ended = time.perf_counter()
        else:
            done += 1
    for process in workers:
        process.join()
    return {
        "images": images,
        "processes": processes,
        "seconds": round(ended - started, 3),
        "end_to_end_images_per_s": round(images / (ended - started), 1),
        "steady_images_per_s": round((images - counted_before) / (ended - steady_from), 1),
    }


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="tars or globs")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--decode", default="fast")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=1, help="how often each shard is labelled")
    options = parser.parse_args()
    found = [sorted(Path(pattern).parent.glob(Path(pattern).name)) for pattern in options.source]
    paths = [str(path) for paths in found for path in paths]
    print(json.dumps(run(paths * options.repeat, options.model, options.decode, options.processes)))


if __name__ == "__main__":
    main()
