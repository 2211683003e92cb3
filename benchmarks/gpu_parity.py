"""Labels of a GPU beside the CPU's: how many agree, and how far scores move.

    python -m benchmarks.gpu_parity 'shards/*.tar' [--provider cuda] [--model resnet18-v2] [--limit 500]

The reference is the CPU's float32. `close_calls` are images whose two best reference scores differ by less than the
largest difference of a score: only those may change their label by rounding. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.gpu_common import ARITHMETIC, PROVIDERS, decoded_images, load_graphs
from models.errors import ShardlabelError
from models.inference.classifier import Classifier, Provider
from models.session import GpuOptions, gpu_name
from models.spec import Precision


def measure(options: argparse.Namespace) -> dict:
    """Compare each arithmetic with the reference."""
    graphs = load_graphs(options.model)
    images = decoded_images(options.tars, graphs.spec, options.limit)
    reference = Classifier(
        graphs.spec, precision=Precision.FP32, graph=graphs.of[Precision.FP32], num_threads=0, top_k=1
    )
    pieces = [images[first : first + 16] for first in range(0, len(images), 16)]
    expected = np.concatenate([reference.predict(piece, probabilities=True).probabilities for piece in pieces])
    ordered = np.sort(expected, axis=1)
    rows = []
    for arithmetic in options.arithmetic.split(","):
        precision, tf32 = ARITHMETIC[arithmetic]
        try:
            found = Classifier(
                graphs.spec, precision=precision, provider=PROVIDERS[options.provider], graph=graphs.of[precision],
                gpu=GpuOptions(options.batch, tf32=tf32), top_k=1,
            ).predict(images, probabilities=True).probabilities  # fmt: skip
        except ShardlabelError as err:
            rows.append({"arithmetic": arithmetic, "failed": str(err)[:300]})
            continue
        difference = float(np.abs(found - expected).max())
        rows.append(
            {
                "arithmetic": arithmetic,
                "same_best_label": round(float((found.argmax(1) == expected.argmax(1)).mean()), 5),
                "largest_score_difference": difference,
                "close_calls": int((ordered[:, -1] - ordered[:, -2] < difference).sum()),
            }
        )
    return {
        "benchmark": "gpu_parity",
        "provider": PROVIDERS[options.provider].value,
        "gpu": gpu_name(),
        "model": options.model,
        "weights": graphs.weights,
        "images": len(images),
        "reference": f"{Provider.CPU.value} fp32",
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cuda")
    parser.add_argument("--model", default="resnet18-v2")
    parser.add_argument("--arithmetic", default=",".join(ARITHMETIC))
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    result = measure(parser.parse_args(arguments))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
