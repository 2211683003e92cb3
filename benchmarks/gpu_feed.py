"""How much of the bare decode rate reaches a GPU: two-stage `label` with a simulated GPU, beside decoding alone.

    python -m benchmarks.gpu_feed 'shards/*.tar' [--rate 10000] [--repeat 20] [--runs 3]

`bare` is one process per core that reads and decodes the same shards and does nothing else; ours decodes, sends pixels to
the GPU's actor, puts labels into Parquet and commits. Both run in turn, `runs` times. `end_to_end` counts from the
start of the command to its end (bare: to the last image). `steady` leaves the start out: of bare from the moment that
every process is up, of ours from the moment when a tenth of the units is finished, to the last unit.

`cpu_ratio` holds on a machine that others use too: the CPU seconds that an image takes bare, by those that it takes ours in
the steady part, with the driver and all of Ray's processes counted. What is CPU-bound reaches that share of the bare rate.

The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.gpu_common import top_k
from benchmarks.measure import descendants, process_table
from models.catalog import load_spec


def decode_shards(model: str, shards: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    """Decode shards until there are none."""
    from models.catalog import load_spec
    from models.decode.decode import DecodeMode, ImageLimits, decode_image

    spec = load_spec(model)
    limits, side = ImageLimits(), spec.preprocessing.crop
    pixels = np.empty((side, side, 3), np.uint8)
    began = time.process_time()
    results.put(("up", time.perf_counter()))
    while (path := shards.get()) is not None:
        images = 0
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    data = tar.extractfile(member).read()
                    decode_image(data, spec.preprocessing, DecodeMode.FAST, limits, out=pixels)
                    images += 1
        results.put(("images", images))
    results.put(("cpu", time.process_time() - began))
    results.put(("done", time.perf_counter()))


def bare(paths: list[Path], model: str, processes: int) -> dict:
    """Decode all on so many processes."""
    context = multiprocessing.get_context("spawn")
    shards, results = context.Queue(), context.Queue()
    for path in [*map(str, paths), *[None] * processes]:
        shards.put(path)
    started = time.perf_counter()
    workers = [context.Process(target=decode_shards, args=(model, shards, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    said: dict[str, list] = {"up": [], "images": [], "cpu": [], "done": []}
    while len(said["done"]) < processes:
        kind, value = results.get(timeout=120)
        said[kind].append(value)
    for worker in workers:
        worker.join()
    images, ended = sum(said["images"]), max(said["done"])
    return {
        "images": images,
        "end_to_end_images_per_s": images / (ended - started),
        "steady_images_per_s": images / (ended - max(said["up"])),
        "cpu_ms_per_image": 1000 * sum(said["cpu"]) / images,
    }


def cpu_seconds(pid: int) -> dict[int, float]:
    """Return the CPU seconds so far of a process and all below it, by pid."""
    table = process_table()
    return {each: table[each][1] for each in descendants(pid, table) if each in table}


def steady_cpu(process: subprocess.Popen, output: Path, units: int) -> float:
    """Return the CPU seconds that a unit takes while the run is steady, of all its processes; 0 where it was too short."""
    marks: list[tuple[int, dict[int, float]]] = []
    while process.poll() is None:
        done = len(list(output.glob("*.parquet")))
        if units // 10 <= done < units and done:
            marks.append((done, cpu_seconds(process.pid)))
        time.sleep(0.25)
    if not marks or marks[0][0] == marks[-1][0]:
        return 0.0
    (first, before), (last, after) = marks[0], marks[-1]
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items()) / (last - first)


def ours(paths: list[Path], model: str, rate: float, extra: list[str]) -> dict:
    """Run the command over all, and take the rate from when each part was written."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "list.txt"
        listing.write_text("".join(f"{path}\n" for path in paths))
        output = Path(folder) / "out"
        command = [sys.executable, "-m", "cluster.cli", "label", f"@{listing}", "--output", str(output), "--model", model,
                   "--device", f"simulated:{rate:g}", "--json", "--progress", "none",
                   "--top-k", str(top_k(load_spec(model))), *extra]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        cpu_s_per_part = steady_cpu(process, output, len(paths))
        text, _ = process.communicate()
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"the command ended with {process.returncode}: {text[-500:]}")
        parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in output.glob("*.parquet"))
    said = json.loads(text.splitlines()[-1])
    skipped = max(1, len(parts) // 10)
    (first, _), (last, _) = parts[skipped - 1], parts[-1]
    return {
        "images": said["images"],
        "end_to_end_images_per_s": said["images"] / seconds,
        "steady_images_per_s": sum(rows for _, rows in parts[skipped:]) / max(last - first, 1e-9),
        "first_commit_s": said["first_commit_s"],
        "cpu_ms_per_image": 1000 * cpu_s_per_part * len(paths) / said["images"],
    }


def repeated(tars: list[str], repeat: int, folder: Path) -> list[Path]:
    """Give each tar so many names."""
    links = []
    for turn in range(repeat):
        for number, tar in enumerate(tars):
            link = folder / f"{turn:03d}-{number:03d}.tar"
            link.symlink_to(Path(tar).resolve())
            links.append(link)
    return links


def compare(tars: list[str], options: argparse.Namespace) -> dict:
    """Run both in turn and return every run's figures, and the medians of the ratios."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        paths = repeated(tars, options.repeat, Path(folder))
        for _ in range(options.runs):
            pair = {
                "bare": bare(paths, options.model, options.processes),
                "ours": ours(paths, options.model, options.rate, options.label_option),
            }
            for kind in ("steady", "end_to_end"):
                name = f"{kind}_images_per_s"
                pair[f"{kind}_ratio"] = pair["ours"][name] / pair["bare"][name]
            cost = pair["ours"]["cpu_ms_per_image"]
            pair["cpu_ratio"] = pair["bare"]["cpu_ms_per_image"] / cost if cost else 0.0
            rounds.append(pair)
            sys.stderr.write(json.dumps(pair) + "\n")
    return {
        "benchmark": "gpu_feed",
        "rate": options.rate,
        "images": rounds[0]["ours"]["images"],
        "processes": options.processes,
        "runs": options.runs,
        **{
            f"{kind}_ratio": round(statistics.median(pair[f"{kind}_ratio"] for pair in rounds), 3)
            for kind in ("steady", "end_to_end", "cpu")
        },
        "rounds": rounds,
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--model", default="efficientnet-lite0", help="whose preprocessing")
    parser.add_argument("--rate", type=float, default=10_000, help="of the simulated GPU, images/s")
    parser.add_argument("--repeat", type=int, default=1, help="how often each tar is labelled")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--label-option", action="append", default=[], help="passed on to `label`, as --label-option=--x=y"
    )
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    tars = sorted(name for pattern in options.tars for name in glob.glob(pattern))  # noqa: PTH207 (absolute)
    if not tars:
        parser.error(f"no file is named {' '.join(options.tars)}")
    result = compare(tars, options)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
