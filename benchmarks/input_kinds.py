"""The same images in every kind of input: seconds, images/s, and the share of the cores' time that nothing uses.

    python -m benchmarks.input_kinds 'samples/*.tar' [--images 3000] [--rounds 5] [--only loose,one-tar] [--large 100000]
        [--bare] [--dry-run 500] [--work /tmp/kinds] [--into results/FILE.json]

| kind | is |
|---|---|
| `even-tars` | tars of 100 images: what the others are compared with, within a round |
| `few-loose` | 200 loose images |
| `loose` | loose images |
| `one-tar`, `one-parquet` | one file; of the Parquet file a row group has 100 images |
| `ten-shards` | ten tars alike |
| `slow-tail` | tars of 100, and a last one that holds half of all images |
| `large-loose` | with `--large N`: so many loose images of 96 pixels |

`images_per_s` counts from the start of the command to its exit. `idle` is the share of all cores' time between the first
file and the last in which no process of the command ran; `idle_in_all` that from start to exit. Both count CPU seconds of
the command, so that other work on the machine passes for idle: look at them on a quiet one. `against_even` is images/s by
that of `even-tars`. `steady` is `benchmarks.progress.steady_rate`. With `--bare` each round also has `benchmarks.bare` over
the even tars, and `of_bare` is `steady` by that of the bare loop. With `--dry-run N` each kind is estimated first;
`estimated` is the seconds foretold by those it took.
Each figure is the median of the rounds, in which the kinds take turns; each round begins with another. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.bulk import machine
from benchmarks.measure import descendants, process_table
from benchmarks.progress import FILE as PROGRESS
from benchmarks.progress import file_events, read_events, steady_rate

FEW = 200
EACH = 100
SMALL = 96
LOOK_EVERY_S = 1.0
YARDSTICK = "even-tars"
BARE = "bare"

Images = Sequence[tuple[str, bytes]]


def read_images(tars: list[str], count: int) -> Images:
    """Return so many images with names of their own; those of the tars, in order, again and again."""
    contents: list[bytes] = []
    for path in tars:
        with tarfile.open(path) as tar:
            contents += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    return [(f"{number:06d}.jpg", contents[number % len(contents)]) for number in range(count)]


def batched(images: Images, size: int) -> list[Images]:
    return [images[first : first + size] for first in range(0, len(images), size)]


def write_tar(path: Path, images: Images) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in images:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tars(folder: Path, groups: Sequence[Images]) -> None:
    for number, images in enumerate(groups):
        write_tar(folder / f"{number:05d}.tar", images)


def write_loose(folder: Path, images: Images) -> None:
    for name, content in images:
        (folder / name).write_bytes(content)


def write_parquet(folder: Path, images: Images) -> None:
    names, contents = zip(*images, strict=True)
    pq.write_table(pa.table({"name": names, "image": contents}), folder / "images.parquet", row_group_size=EACH)


def small(images: Images) -> Images:
    """Return images of SMALL pixels in their place."""
    made: dict[bytes, bytes] = {}
    for _, content in images:
        if content not in made:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(content)).convert("RGB").resize((SMALL, SMALL)).save(buffer, "JPEG")
            made[content] = buffer.getvalue()
    return [(name, made[content]) for name, content in images]


def write_kind(kind: str, folder: Path, images: Images, tars: list[str], large: int) -> int:
    """Write a kind of input; return how many images it has."""
    folder.mkdir(parents=True)
    half = len(images) // 2
    if kind == "few-loose":
        images = images[:FEW]
    if kind == "large-loose":
        images = small(read_images(tars, large))
    if kind in ("few-loose", "loose", "large-loose"):
        write_loose(folder, images)
    elif kind == "one-parquet":
        write_parquet(folder, images)
    elif kind == "slow-tail":
        write_tars(folder, [*batched(images[:half], EACH), images[half:]])
    else:
        size = {"even-tars": EACH, "ten-shards": len(images) // 10, "one-tar": len(images)}[kind]
        write_tars(folder, batched(images, size))
    return len(images)


def label(source: Path, output: Path, *more: str) -> tuple[dict, list[tuple[float, float]], float]:
    """Run `label`; return its summary, (seconds since the epoch, CPU seconds so far) over time, and its seconds."""
    command = [sys.executable, "-m", "cluster.cli", "label", str(source), "--output", str(output), "--model",
               "efficientnet-lite0", "--progress", "none", "--json", *more]  # fmt: skip
    cpu: dict[int, float] = {}
    looks: list[tuple[float, float]] = []
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said)
        while process.poll() is None:
            table = process_table()
            cpu.update((pid, table[pid][1]) for pid in descendants(process.pid, table) if pid in table)
            looks.append((time.time(), sum(cpu.values())))
            time.sleep(LOOK_EVERY_S)
        seconds = time.perf_counter() - started
        said.seek(0)
        lines = said.read().splitlines()
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}: {lines[-3:]}")
    return json.loads(lines[-1]), looks, seconds


def idle(looks: list[tuple[float, float]]) -> float:
    """Return the share of the cores' time that was not used, of some looks."""
    (begin, before), (end, after) = looks[0], looks[-1]
    return 1 - (after - before) / max(1e-9, (end - begin) * len(os.sched_getaffinity(0)))


def run_kind(source: Path, images: int, output: Path, dry_run: int) -> dict:
    """Label one kind of input once."""
    foretold = label(source, output, "--dry-run", str(dry_run))[0]["seconds_estimated"] if dry_run else None
    said, looks, seconds = label(source, output)
    if said["images"] != images:
        raise SystemExit(f"{source}: {said['images']} rows, expected {images}")
    events = file_events(output.glob("part-*.parquet"))
    between = [look for look in looks if events[0][0] <= look[0] <= events[-1][0]]
    steady = steady_rate(events)
    shutil.rmtree(output)
    return {
        "images": images,
        "units": len(events),
        "seconds": round(seconds, 2),
        "images_per_s": round(images / seconds, 1),
        "steady": None if steady is None else round(steady, 1),
        "idle": round(idle(between), 3) if len(between) > 1 else None,
        "idle_in_all": round(idle(looks), 3),
        "estimated": round(foretold / seconds, 3) if foretold else None,
    }


def run_bare(tars: Path, folder: Path) -> dict:
    """Label tars once without a framework."""
    progress = folder / "progress"
    command = [sys.executable, "-m", "benchmarks.bare", str(tars / "*.tar"), "--model", "efficientnet-lite0"]
    subprocess.run(command, env={**os.environ, PROGRESS: str(progress)}, stdout=subprocess.DEVNULL, check=True)
    steady = steady_rate(read_events(progress))
    progress.unlink()
    return {"steady": steady}


def medians(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Return the medians of each kind; ratios are formed within a round."""
    found = {}
    for kind in rounds[0]:
        runs = [one[kind].copy() for one in rounds]
        for one, run in zip(rounds, runs, strict=True):
            if kind != BARE:
                run["against_even"] = run["images_per_s"] / one[YARDSTICK]["images_per_s"]
                if BARE in one and run["steady"] is not None:
                    run["of_bare"] = run["steady"] / one[BARE]["steady"]
        names = [name for name in runs[0] if all(run.get(name) is not None for run in runs)]
        found[kind] = {name: round(statistics.median(run[name] for run in runs), 3) for name in names}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", help="tars with .jpg members, repeated to --images")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="few-loose,loose,one-tar,one-parquet,ten-shards,slow-tail")
    parser.add_argument("--large", type=int, default=0, help="also so many small loose images")
    parser.add_argument("--bare", action="store_true", help="also the bare loop over the even tars, in each round")
    parser.add_argument("--dry-run", type=int, default=0, metavar="N", help="estimate each kind from N images first")
    parser.add_argument("--work", type=Path, help="folder for the inputs, removed at the end")
    parser.add_argument("--into", type=Path, help="results file")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    tars = sorted(name for pattern in options.tars for name in glob.glob(pattern))  # noqa: PTH207 (absolute)
    images = read_images(tars, options.images)
    kinds = [YARDSTICK, *options.only.split(","), *(["large-loose"] if options.large else [])]
    rounds = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        counts = {kind: write_kind(kind, Path(folder, kind), images, tars, options.large) for kind in kinds}
        label(Path(folder, kinds[0]), Path(folder, "out"), "--limit", "16")  # builds the joined graph
        shutil.rmtree(Path(folder, "out"))
        turns = [BARE] * options.bare + kinds
        for number in range(options.rounds):
            rounds.append({})
            first = number % len(turns)
            for kind in turns[first:] + turns[:first]:
                rounds[-1][kind] = (
                    run_bare(Path(folder, YARDSTICK), Path(folder))
                    if kind == BARE
                    else run_kind(Path(folder, kind), counts[kind], Path(folder, "out"), options.dry_run)
                )
                sys.stderr.write(f"{kind} {json.dumps(rounds[-1][kind])}\n")
    figures = {"benchmark": "input_kinds", "machine": machine(), "kinds": medians(rounds), "rounds": rounds}
    for kind, row in figures["kinds"].items():
        print(f"{kind:12} " + "  ".join(f"{name} {value:g}" for name, value in row.items()))
    if options.into is not None:
        options.into.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
