"""`label(ray.data.read_parquet(...))` beside `run` on the same 2,000 images, in turns: `python -m benchmarks.python_api`.

For each a process of its own. Seconds are from before Ray is started to the last file; of `label` also from its call.
Says whether all labels and scores are equal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
MODEL = "efficientnet-lite0"


def write_images(folder: Path, count: int) -> None:
    """Write Parquet files of 100 images each, of the sample images over and over."""
    images = []
    for path in sorted(SAMPLES.glob("*.tar")):
        with tarfile.open(path) as tar:
            images += [tar.extractfile(one).read() for one in tar if one.name.endswith((".jpg", ".JPEG", ".jpeg"))]
    folder.mkdir()
    for first in range(0, count, 100):
        rows = [images[i % len(images)] for i in range(first, first + 100)]
        table = pa.table({"bytes": pa.array(rows, pa.binary()), "number": range(first, first + 100)})
        pq.write_table(table, folder / f"{first:06d}.parquet", compression="none")


def by_label(source: Path, output: Path) -> dict[str, float]:
    started = time.perf_counter()
    import ray

    from pipeline import label

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    called = time.perf_counter()
    labelled = label(ray.data.read_parquet(str(source)), model=MODEL)
    labelled.drop_columns(["bytes"]).write_parquet(str(output))
    return {"all_s": time.perf_counter() - started, "from_call_s": time.perf_counter() - called}


def by_run(source: Path, output: Path) -> dict[str, float]:
    started = time.perf_counter()
    from pipeline import LabelConfig, run

    run(LabelConfig(source=source, output=output, model=MODEL, key_column="number", progress="none"))
    return {"all_s": time.perf_counter() - started}


def labels(folder: Path, key: str) -> dict[int, tuple]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    names = ("label_id", "score", "top_ids", "top_scores", "width", "height", "status")
    columns = zip(*(table[name].to_pylist() for name in names), strict=True)
    return dict(zip(map(int, table[key].to_pylist()), map(str, columns), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help="internal: label or run, source, output")
    arguments = parser.parse_args()
    if arguments.one:
        way, source, output = arguments.one
        print(json.dumps((by_label if way == "label" else by_run)(Path(source), Path(output))))
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "in", arguments.images)
        for number in range(arguments.rounds):
            for way in ("label", "run"):
                output = folder / f"{way}-{number}"
                command = [sys.executable, "-m", "benchmarks.python_api", "--one", way, folder / "in", output]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                times = json.loads(done.stdout.splitlines()[-1])
                rates = {key: round(arguments.images / value, 1) for key, value in times.items()}
                print(json.dumps({"way": way, "images_per_s": rates}), flush=True)
            same = labels(folder / f"label-{number}", "number") == labels(folder / f"run-{number}", "key")
            print(json.dumps({"equal": same}), flush=True)


if __name__ == "__main__":
    main()
