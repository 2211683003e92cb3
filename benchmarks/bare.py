"""The rate of the bare machine: one process per core, the same decode and model, no framework.

    python -m benchmarks.bare 'shards/*.tar' --model efficientnet-lite0 [--repeat 20]

What bounds it: one core's decode and inference, times cores. It keeps labels in memory and commits nothing, so it is the
most that any tool built on the same two libraries can reach here; with `--parquet DIR` it writes key, label and score,
one Parquet file per shard, as its peers do. `end_to_end` counts from the start of the work to the
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.progress import note_labelled

BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Task:
    """What each process does: the model, how it decodes, and the folder for Parquet files, if any."""

    model: str
    precision: str = "auto"
    mode: str = "fast"
    parquet: str | None = None


def worker(task: Task, shards: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    """Label shards until there are none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from models.catalog import load_labels, load_spec
    from models.decode.decode import DecodeMode, ImageLimits, decode_image
    from models.inference.classifier import Classifier, Device, choose

    spec, mode = load_spec(task.model), DecodeMode(task.mode)
    names = np.asarray(load_labels(spec), object)
    choice = choose(spec, Device.CPU, task.precision, has_gpu=False)
    classifier = Classifier(spec, precision=choice.precision)
    limits, side = ImageLimits(), spec.preprocessing.crop
    pixels = np.empty((BATCH_SIZE, side, side, 3), np.uint8)
    results.put(("ready", os.getpid()))
    while (job := shards.get()) is not None:
        number, path = job
        keys, labels, waiting = [], [], 0
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".jpg"):
                    continue
                data = tar.extractfile(member).read()
                decode_image(data, spec.preprocessing, mode, limits, out=pixels[waiting])
                keys.append(member.name)
                waiting += 1
                if waiting == BATCH_SIZE:
                    labels.append(classifier.predict(pixels))
                    note_labelled(waiting)
                    waiting = 0
        if waiting:
            labels.append(classifier.predict(pixels[:waiting]))
            note_labelled(waiting)
        if task.parquet is not None:
            write_parquet(Path(task.parquet) / f"part-{number:05d}.parquet", keys, names, labels)
        results.put(("labels", len(keys)))
    results.put(("done", time.perf_counter()))


def write_parquet(path: Path, keys: list[str], names: np.ndarray, batches: list) -> None:
    """Write a shard's rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    best = np.concatenate([batch.label_ids[:, 0] for batch in batches]) if batches else np.empty(0, int)
    scores = np.concatenate([batch.scores[:, 0] for batch in batches]) if batches else np.empty(0, np.float32)
    pq.write_table(pa.table({"key": keys, "label": names[best].tolist(), "score": scores}), path, compression="zstd")


def run(paths: list[str], task: Task, processes: int) -> dict:  # noqa: C901 (one loop, three messages)
    """Label all shards and return the figures."""
    context = multiprocessing.get_context("spawn")
    shards, results = context.Queue(), context.Queue()
    started = time.perf_counter()
    workers = [context.Process(target=worker, args=(task, shards, results)) for _ in range(processes)]
    for process in workers:
        process.start()
    ready = done = images = 0
    steady_from = ended = started
    for job in enumerate(paths):
        shards.put(job)
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
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--decode", default="fast")
    parser.add_argument("--parquet", metavar="DIR", help="write key, label and score there, a file per shard")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=1, help="how often each shard is labelled")
    options = parser.parse_args()
    found = [sorted(Path(pattern).parent.glob(Path(pattern).name)) for pattern in options.source]
    paths = [str(path) for paths in found for path in paths]
    if options.parquet:
        Path(options.parquet).mkdir(parents=True, exist_ok=True)
    task = Task(options.model, options.precision, options.decode, options.parquet)
    print(json.dumps(run(paths * options.repeat, task, options.processes)))


if __name__ == "__main__":
    main()
