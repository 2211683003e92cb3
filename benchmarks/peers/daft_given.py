"""Daft that is given the bare script's decoder: a batch method takes encoded bytes to labels.

    python -m benchmarks.peers.daft_given --inputs DIR --output DIR --model M --precision P

Daft reads the files, schedules, and writes Parquet; decoding is `models.decode.decode.decode_image`, as in bare and ours.
"""

from __future__ import annotations

from collections.abc import Callable

import daft
import numpy as np
from daft import col

from benchmarks.peers.common import Job, UInt8Model, parse_job
from benchmarks.peers.daft_own import LABELLED
from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.spec import Preprocessing

BATCH_SIZE = 64
LIMITS = ImageLimits()


def decode(data: bytes, p: Preprocessing, out: np.ndarray) -> None:
    """Decode as bare and ours do."""
    decode_image(data, p, DecodeMode.FAST, LIMITS, out=out)


def make_labeller(job: Job, decoder: Callable[[bytes, Preprocessing, np.ndarray], None]) -> object:
    """Return the class whose batch method decodes and labels, one process per core."""

    @daft.cls(max_concurrency=job.cpus, use_process=True)
    class Labeller:
        def __init__(self) -> None:
            self.preprocessing = load_spec(job.model).preprocessing
            self.model = UInt8Model(job)

        @daft.method.batch(return_dtype=LABELLED, batch_size=BATCH_SIZE)
        def label(self, files: daft.Series) -> list:
            encoded, p = files.to_pylist(), self.preprocessing
            crops = np.empty((len(encoded), p.crop, p.crop, 3), np.uint8)
            for out, data in zip(crops, encoded, strict=True):
                decoder(data, p, out)
            names, scores = self.model.predict(crops)
            return [{"label": name, "score": float(score)} for name, score in zip(names, scores, strict=True)]

    return Labeller()


def run(job: Job, decoder: Callable[[bytes, Preprocessing, np.ndarray], None]) -> None:
    """Label all images, decoded by a function that takes their bytes and where the crop goes."""
    labeller = make_labeller(job, decoder)
    frame = daft.read_parquet(str(job.inputs / "urls" / "*.parquet"))
    frame = frame.with_column("labelled", labeller.label(col("image_url").download()))
    frame = frame.select(
        col("image_url").alias("key"),
        col("labelled").get("label").alias("label"),
        col("labelled").get("score").alias("score"),
    )
    frame.write_parquet(str(job.output))


if __name__ == "__main__":
    run(parse_job(__doc__), decode)
