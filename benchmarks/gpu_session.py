"""The session alone: images per second from uint8 pixels in host memory to the best k in host memory.

    python -m benchmarks.gpu_session [--provider cuda] [--model resnet18-v2] [--batches 64,256,1024] [--seconds 5]

What bounds it: the GPU's arithmetic, or, without pinned memory and several batches on their way, the copies. For each
arithmetic (fp32, tf32, fp16) and batch size:

    plain      session.run with numpy arrays, one thread: the baseline
    threads    the same from as many threads as there are slots
    bound      as `label` does: fixed shapes, pinned memory, inputs and outputs on the GPU, three batches on their way
    graphs     bound, and the kernels of a batch recorded once and replayed (CUDA graphs; one batch at a time)

Two seconds of each are not counted. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.gpu_common import ARITHMETIC, PROVIDERS, Graphs, load_graphs, made_up_images, top_k
from models.errors import ShardlabelError
from models.inference.classifier import Classifier, Provider
from models.session import GpuOptions, gpu_name


def rate(work: Callable[[], object], images: int, threads: int, seconds: float, warm_up_s: float) -> float:
    """Return images per second of calls from so many threads, between the ends of calls."""
    ends: list[float] = []
    stop = threading.Event()
    failed: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.is_set():
                work()
                ends.append(time.perf_counter())
        except Exception as err:  # noqa: BLE001 (told below, whatever it is)
            failed.append(err)
            stop.set()

    running = [threading.Thread(target=loop) for _ in range(threads)]
    for thread in running:
        thread.start()
    time.sleep(warm_up_s)
    first, started = len(ends), time.perf_counter()
    # However slow it is: two ends at least make a span.
    while not stop.is_set() and (time.perf_counter() - started < seconds or len(ends) < first + threads + 2):
        time.sleep(0.01)
    counted = sorted(ends[first:])
    stop.set()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]
    return round((len(counted) - 1) * images / (counted[-1] - counted[0]), 1)


def measure_row(graphs: Graphs, arithmetic: str, batch: int, options: argparse.Namespace) -> dict:
    """Measure every way of one arithmetic and batch size; a way that fails says why."""
    provider = PROVIDERS[options.provider]
    precision, tf32 = ARITHMETIC[arithmetic]
    images = made_up_images(graphs.spec, batch)
    gpu = GpuOptions(batch, slots=options.slots, tf32=tf32)
    row: dict = {"arithmetic": arithmetic, "batch": batch}

    def build(gpu: GpuOptions) -> Classifier:
        graph = graphs.of[precision]
        return Classifier(
            graphs.spec, precision=precision, provider=provider, top_k=top_k(graphs.spec), gpu=gpu, graph=graph
        )

    def timed(work: Callable[[], object], threads: int) -> float:
        return rate(work, batch, threads, options.seconds, options.warm_up)

    try:
        classifier = build(gpu)
        row["notes"] = classifier.runner.notes
        plain = partial(classifier.runner._session.run, ["top_ids", "top_scores"], {"images": images})
        row["plain"] = timed(plain, 1)
        row["threads"] = timed(plain, options.slots)
        row["bound"] = timed(partial(classifier.predict, images), options.slots)
        if provider is not Provider.CPU:
            del classifier, plain  # and with them the GPU's memory
            row["graphs"] = timed(partial(build(replace(gpu, cuda_graphs=True)).predict, images), 1)
    except (ShardlabelError, RuntimeError) as err:
        row["failed"] = f"{type(err).__name__}: {err}"[:300]
    sys.stderr.write(json.dumps(row) + "\n")
    return row


def measure(options: argparse.Namespace) -> dict:
    """Measure every arithmetic and batch size that the options ask for."""
    graphs = load_graphs(options.model)
    rows = [
        measure_row(graphs, arithmetic, int(batch), options)
        for arithmetic in options.arithmetic.split(",")
        for batch in options.batches.split(",")
    ]
    ours = [max(row.get("bound", 0), row.get("graphs", 0)) for row in rows]
    best = max(rows, key=lambda row: max(row.get("bound", 0), row.get("graphs", 0)))
    return {
        "benchmark": "gpu_session",
        "provider": PROVIDERS[options.provider].value,
        "gpu": gpu_name(),
        "model": options.model,
        "weights": graphs.weights,
        "best_images_per_s": max(ours),
        "best": {name: best[name] for name in ("arithmetic", "batch")},
        "plain_share_of_best": round(max(row.get("plain", 0) for row in rows) / max(ours), 3) if any(ours) else None,
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cuda")
    parser.add_argument("--model", default="resnet18-v2")
    parser.add_argument("--batches", default="64,256,1024")
    parser.add_argument("--arithmetic", default=",".join(ARITHMETIC))
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    result = measure(parser.parse_args(arguments))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
