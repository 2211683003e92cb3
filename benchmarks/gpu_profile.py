"""One steady second of the session: what the GPU computes, what is copied, and what the cores do meanwhile.

    python -m benchmarks.gpu_profile [--provider cuda] [--model resnet18-v2] [--arithmetic fp16] [--batch 256]

Two parts. `steps`: milliseconds of each step of a batch in one thread (into pinned memory, to the GPU, computing, back),
which with several batches on their way overlap. `kernels`: ONNX Runtime's own profile of one thread, seconds by kind of
node and by the provider that ran it: whatever is the CPU's among them crosses the bus. `cores_busy` counts all processes.
The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import onnxruntime as ort

from benchmarks.gpu_common import ARITHMETIC, PROVIDERS, load_graphs, made_up_images, top_k
from benchmarks.gpu_end_to_end import watching_gpu
from benchmarks.gpu_session import rate
from models.graph.fixed_shape import fix_top_k
from models.inference.classifier import Classifier
from models.session import GpuOptions, gpu_name, providers


def steps(classifier: Classifier, images, repeats: int) -> dict:
    """Return the median milliseconds of each step of a batch."""
    slot = classifier.runner._slots.get()
    found: dict[str, list[float]] = defaultdict(list)
    work = {
        "into_pinned": lambda: slot.pixels.array.__setitem__(slice(None), images),
        "to_gpu": lambda: slot.on_gpu.update_inplace(slot.pixels.array),
        "compute": lambda: classifier.runner._session.run_with_iobinding(slot.binding),
        "back": lambda: (slot.ids.numpy(), slot.scores.numpy()),
    }
    for _ in range(repeats):
        for name, step in work.items():
            started = time.perf_counter()
            step()
            found[name].append(1000 * (time.perf_counter() - started))
    classifier.runner._slots.put(slot)
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def kernels(graph: bytes, options: argparse.Namespace, gpu: GpuOptions, images) -> list[dict]:
    """Return seconds by provider and kind of node, most first."""
    provider = PROVIDERS[options.provider]
    with tempfile.TemporaryDirectory() as folder:
        settings = ort.SessionOptions()
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(graph, settings, providers=providers(provider, gpu, graph))
        for _ in range(options.repeats):
            session.run(["top_ids", "top_scores"], {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            arguments = event["args"]
            spent[arguments.get("provider", "?"), arguments.get("op_name", "?")] += event["dur"] / 1e6
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return [{"provider": p, "op": op, "seconds": round(seconds, 4)} for (p, op), seconds in ordered[:20]]


def busy_cores() -> float:
    """Return the seconds that all cores have been busy since the machine started."""
    numbers = [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / 100


def measure(options: argparse.Namespace) -> dict:
    """Profile one way of running one model."""
    precision, tf32 = ARITHMETIC[options.arithmetic]
    graphs = load_graphs(options.model)
    images = made_up_images(graphs.spec, options.batch)
    gpu = GpuOptions(options.batch, precision=precision, tf32=tf32)
    classifier = Classifier(
        graphs.spec,
        precision=precision,
        provider=PROVIDERS[options.provider],
        gpu=gpu,
        graph=graphs.of[precision],
        top_k=top_k(graphs.spec),
    )
    by_step = steps(classifier, images, options.repeats)
    busy, started = busy_cores(), time.perf_counter()
    with watching_gpu() as samples:
        found = rate(partial(classifier.predict, images), options.batch, gpu.slots, options.seconds, options.warm_up)
    cores = (busy_cores() - busy) / (time.perf_counter() - started)
    slots = gpu.slots
    del classifier
    return {
        "benchmark": "gpu_profile",
        "provider": PROVIDERS[options.provider].value,
        "gpu": gpu_name(),
        "model": options.model,
        "weights": graphs.weights,
        "arithmetic": options.arithmetic,
        "batch": options.batch,
        "slots": slots,
        "steady_images_per_s": found,
        "gpu_busy_percent": statistics.fmean(busy for busy, _ in samples) if samples else None,
        "cores_busy": round(cores, 2),
        "steps_ms": by_step,
        "kernels": kernels(fix_top_k(graphs.of[precision], top_k(graphs.spec)), options, gpu, images),
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cuda")
    parser.add_argument("--model", default="resnet18-v2")
    parser.add_argument("--arithmetic", choices=list(ARITHMETIC), default="fp16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    result = measure(parser.parse_args(arguments))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
