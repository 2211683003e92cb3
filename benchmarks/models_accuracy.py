"""What quantising and faster decoding cost: accuracy of each way of running a model, and what `models quantize` makes.

    python -m benchmarks.models_accuracy --source 'val/*.tar' --model efficientnet-lite0

Four rows: int8 and fp32, fast and exact decode, each on the same labelled images, with Wilson's intervals; then int8
against fp32 image by image; then the candidates of `models quantize` on a part that they were not calibrated on (with a
bar so low that nothing is refused, in a cache of its own, so that nothing is registered for you). Figures of accuracy do
not depend on the machine's load; images/s do. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from models.catalog import load_spec
from models.spec import Precision
from models.store.locate import locate


def shardlabel(*arguments: str, home: Path | None = None) -> dict:
    """Run a command with --json; return what it printed."""
    environment = {**os.environ, **({"SHARDLABEL_HOME": str(home)} if home else {})}
    command = [sys.executable, "-m", "cluster.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--no-quantize", action="store_true", help="only the four rows and the comparison")
    options = parser.parse_args()

    ways, keep = {}, ("images", "top1", "top1_interval", "top5", "top5_interval", "calibration_error", "images_per_s")
    for precision in ("int8", "fp32"):
        for decode in ("fast", "exact"):
            found = shardlabel(
                "evaluate", options.source, "--model", options.model, "--precision", precision, "--decode", decode
            )
            ways[f"{precision} {decode}"] = {name: found[name] for name in keep}
            low, high = found["top1_interval"]
            print(f"{precision} {decode:<5} top-1 {found['top1']:.2f} ({low:.1f} to {high:.1f}), "
                  f"top-5 {found['top5']:.2f}, {found['images_per_s']:.0f} images/s")  # fmt: skip
    compared = shardlabel("evaluate", options.source, "--model", options.model, "--compare", "int8", "fp32")
    pair = {name: compared[name] for name in ("agreement", "only_a", "only_b", "mcnemar_p")}
    print(f"int8 against fp32: {pair}")
    result = {"model": options.model, "ways": ways, "int8_against_fp32": pair}
    if not options.no_quantize:
        result["quantize"] = quantised(options)
    print(json.dumps(result))


def quantised(options: argparse.Namespace) -> dict:
    spec = load_spec(options.model)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        artifact = spec.artifact(Precision.FP32)
        place = home / "artifacts" / artifact.sha256
        place.mkdir(parents=True)
        shutil.copy(locate(spec, Precision.FP32), place / artifact.file)
        found = shardlabel(
            "models", "quantize", options.model, "--calibration", options.source, "--max-drop", "100",
            "--calibration-images", str(options.calibration_images), home=home,
        )  # fmt: skip
    for one in found["candidates"]:
        speed = f"{one['speed_up']:.2f} times fp32" if one["speed_up"] else "not timed"
        print(f"{one['name']:<16} top-1 {one['top1']:.2f}, same labels {one['agreement']:.2f} %, {speed}")
    return found


if __name__ == "__main__":
    main()
