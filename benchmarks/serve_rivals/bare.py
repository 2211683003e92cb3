"""The bound: processes that do nothing but decode and label, one image after the other, with no server around them.

    python -m benchmarks.serve_rivals.bare --processes 2 --seconds 5

The last line of output is one JSON object: images per second of all, and the median time of one image.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time

from benchmarks.serve_rivals.labeller import make_labeller
from benchmarks.serve_rivals.load import read_images


def work(
    number: int, images: list[bytes], seconds: float, start: multiprocessing.Barrier, results: multiprocessing.Queue
) -> None:
    labeller = make_labeller()
    times = []
    for data in images[:10]:
        labeller.label([labeller.decode(data)])
    start.wait()
    until = time.perf_counter() + seconds
    at = number * 7
    while (began := time.perf_counter()) < until:
        labeller.label([labeller.decode(images[at % len(images)])])
        times.append(time.perf_counter() - began)
        at += 1
    results.put(times)


def measure(processes: int, seconds: float, images: list[bytes]) -> dict:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(n, images, seconds, start, results)) for n in range(processes)]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    rate = sum(len(each) / sum(each) for each in times)
    return {"rate": round(rate, 2), "p50_ms": round(1000 * statistics.median(t for each in times for t in each), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    print(json.dumps(measure(args.processes, args.seconds, read_images(args.images))))


if __name__ == "__main__":
    main()
