"""The same images in bulk and online: are the labels the same, and how far apart are the scores?

    python -m benchmarks.serve_parity 'shards/*.tar' [--model M] [--decode exact] [--limit 500]

Bulk is `shardlabel label` as a process of its own, with the batches that it chooses; online is the endpoint, asked by
eight clients at once, so that its batches are others. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.serve_load import Client
from serve.config import ServeOptions
from serve.local.launch import running
from serve.local.ports import free_ports

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def samples(paths: list[str], limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) as the bulk reader keys them."""
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.lower().endswith(IMAGES):
                    content = tar.extractfile(member)
                    if content is not None and limit > 0:
                        limit -= 1
                        yield Path(member.name).name.partition(".")[0], content.read()


def bulk(paths: list[str], args: argparse.Namespace) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "shardlabel"), "label", *paths, "--output", f"{folder}/labels"]
        command += ["--model", args.model, "--decode", args.decode, "--precision", args.precision, "--progress", "none"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {row["key"]: row for row in pq.read_table(f"{folder}/labels").to_pylist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--decode", default="fast")
    parser.add_argument("--limit", type=int, default=500)
    args = parser.parse_args()
    paths = sorted(path for pattern in args.source for path in glob.glob(pattern))  # noqa: PTH207
    rows = bulk(paths, args)
    (port,) = free_ports(1)
    options = ServeOptions(
        model=args.model, decode=args.decode, precision=args.precision, min_replicas=1, port=port, grpc_port=0
    )

    def ask(sample: tuple[str, bytes]) -> tuple[str, dict]:
        _, _, body = Client("127.0.0.1", port).post(sample[1])
        return sample[0], json.loads(body)

    with running(options, lambda text: None), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, samples(paths, args.limit)))
    equal, difference, others = 0, 0.0, []
    for key, answer in answers:
        row = rows[key]
        if row["status"] != "ok" or "error" in answer:
            others.append((key, row["status"], answer.get("error")))
            continue
        labels = answer["results"][0]["labels"]
        equal += [label["label_id"] for label in labels] == row["top_ids"]
        difference = max(
            [difference, *(abs(label["score"] - s) for label, s in zip(labels, row["top_scores"], strict=True))]
        )
    print(
        json.dumps(
            {
                "model": args.model,
                "decode": args.decode,
                "images": len(answers),
                "equal_label_ids": equal,
                "largest_score_difference": difference,
                "not_ok": others,
            }
        )
    )


if __name__ == "__main__":
    main()
