"""One client: how much the endpoint adds to bare decoding and inference.

    python -m benchmarks.serve_latency [--images FOLDER] [--rounds 5]

In turns, over the same images: decode and session in this process, and one client of the endpoint. The bare loop runs
while the endpoint is idle. The last line is one JSON object, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.serve_load import Client, sample_images
from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.inference.classifier import Classifier
from models.spec import Precision
from serve.config import ServeOptions
from serve.local.launch import running
from serve.local.ports import free_ports

MODEL = "efficientnet-lite0"


def timed(call: Callable[[bytes], object], images: list[bytes]) -> list[float]:
    times = []
    for image in images:
        began = time.perf_counter()
        call(image)
        times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="Folder of JPEGs or tars; else the bundled photographs.")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    images = sample_images(args.images, 100)
    spec = load_spec(MODEL)
    classifier = Classifier(spec, precision=Precision.INT8)
    limits = ImageLimits()

    def bare(image: bytes) -> object:
        return classifier.predict(decode_image(image, spec.preprocessing, DecodeMode.FAST, limits).pixels[np.newaxis])

    (port,) = free_ports(1)
    options = ServeOptions(model=MODEL, precision="int8", min_replicas=1, max_replicas=1, port=port, grpc_port=0)
    rows = []
    with running(options, lambda text: None):
        client = Client("127.0.0.1", port)
        timed(bare, images[:20])
        timed(client.post, images[:20])
        for _ in range(args.rounds):
            alone, online = timed(bare, images), timed(client.post, images)
            rows.append(
                {
                    "bare_p50": statistics.median(alone),
                    "online_p50": statistics.median(online),
                    "added_p50": statistics.median(online) - statistics.median(alone),
                    "added_per_image_p50": statistics.median(o - a for o, a in zip(online, alone, strict=True)),
                }
            )
    rows = [{name: round(value, 2) for name, value in row.items()} for row in rows]
    print(
        json.dumps(
            {"images": len(images), "added_p50": statistics.median(r["added_p50"] for r in rows), "rounds": rows}
        )
    )


if __name__ == "__main__":
    main()
