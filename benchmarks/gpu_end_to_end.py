"""`label` as a user runs it, on a GPU: images per second, what decoding and the session could do, and how busy it was.

    python -m benchmarks.gpu_end_to_end 'shards/*.tar' [--device cuda] [--model resnet18-v2] [--repeat 200]
        [--decode-rate R --session-rate R]

What bounds it: the slower of decoding on all cores and the session alone; give both as `gpu_decode` and `gpu_session`
measured them, and `share_of_bound` says how much of that arrived. The GPU's busy share is NVIDIA's `utilization.gpu` over
the middle four fifths of the run, sampled every 0.2 s. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.gpu_common import top_k
from benchmarks.gpu_feed import repeated
from models.catalog import load_spec
from models.session import gpu_name


@contextmanager
def watching_gpu():
    """Sample what NVIDIA's tool says of the GPU; yields a list of (percent busy, MiB used) that grows."""
    samples: list[tuple[float, float]] = []
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield samples
        return
    command = [tool, "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, text=True)
        try:
            yield samples
        finally:
            process.terminate()
            process.wait()
            said.seek(0)
            for line in said:
                numbers = line.split(",")
                if len(numbers) == 2 and all(number.strip().isdecimal() for number in numbers):
                    samples.append((float(numbers[0]), float(numbers[1])))


def label(paths: list[Path], folder: Path, options: argparse.Namespace) -> tuple[dict, float, list[tuple[float, int]]]:
    """Run the command; return its summary, its seconds, and when each part was written with how many rows."""
    listing, output = folder / "list.txt", folder / "out"
    listing.write_text("".join(f"{path}\n" for path in paths))
    command = [sys.executable, "-m", "cluster.cli", "label", f"@{listing}", "--output", str(output), "--json"]
    command += ["--model", options.model, "--device", options.device, "--progress", "plain"]
    command += ["--top-k", str(top_k(load_spec(options.model))), *options.label_option]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the command ended with {done.returncode}: {done.stdout[-500:]}")
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in output.glob("*.parquet"))
    return json.loads(done.stdout.splitlines()[-1]), seconds, parts


def measure(options: argparse.Namespace) -> dict:
    """Label all, and put the figures together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        paths = repeated(options.tars, options.repeat, folder / "in")
        with watching_gpu() as samples:
            said, seconds, parts = label(paths, folder, options)
    skipped = max(1, len(parts) // 10)
    span = parts[-1][0] - parts[skipped - 1][0]
    steady = sum(rows for _, rows in parts[skipped:]) / span if span > 0 else said["images"] / seconds
    middle = samples[len(samples) // 10 : len(samples) - len(samples) // 10]
    bounds = [rate for rate in (options.decode_rate, options.session_rate) if rate]
    return {
        "benchmark": "gpu_end_to_end",
        "gpu": gpu_name(),
        "device": options.device,
        "model": said["model"],
        "precision": said["precision"],
        "cores": len(os.sched_getaffinity(0)),
        "images": said["images"],
        "errors": said["errors"],
        "end_to_end_images_per_s": round(said["images"] / seconds, 1),
        "steady_images_per_s": round(steady, 1),
        "first_commit_s": said["first_commit_s"],
        "bound_images_per_s": min(bounds) if bounds else None,
        "share_of_bound": round(steady / min(bounds), 3) if bounds else None,
        "gpu_busy_share": round(statistics.fmean(busy for busy, _ in middle) / 100, 3) if middle else None,
        "gpu_memory_mib": max((used for _, used in samples), default=None),
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet18-v2")
    parser.add_argument("--repeat", type=int, default=1, help="how often each tar is labelled")
    parser.add_argument("--decode-rate", type=float, help="of all cores, from gpu_decode")
    parser.add_argument("--session-rate", type=float, help="from gpu_session")
    parser.add_argument(
        "--label-option", action="append", default=[], help="passed on, as --label-option=--precision=fp16"
    )
    result = measure(parser.parse_args(arguments))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
