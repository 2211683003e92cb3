"""Daft with its own reading and decoding, in Rust; only the crop and the model are Python.

    python -m benchmarks.peers.daft_own --inputs DIR --output DIR --model M --precision P

After benchmarking/ai/image_classification/daft_main.py of Daft: url.download, image.decode, a class with a batch method,
write_parquet. Daft 0.7 has no reader of WebDataset tars: it gets loose files, which spares it the tars. Also in its
favour: the transform resizes only the crop of the decoded bytes and feeds uint8 to the joined graph, where the published
script resizes all of the image as floats and passes float32 tensors on.
"""

from __future__ import annotations

import daft
import numpy as np
from daft import col

from benchmarks.peers.common import Job, UInt8Model, crop_of, parse_job
from models.catalog import load_spec

BATCH_SIZE = 100
LABELLED = daft.DataType.struct({"label": daft.DataType.string(), "score": daft.DataType.float32()})


def make_labeller(job: Job) -> object:
    """Return the class whose batch method crops and labels; one per core, in threads: both release the GIL."""

    @daft.cls(max_concurrency=job.cpus)
    class Labeller:
        def __init__(self) -> None:
            self.preprocessing = load_spec(job.model).preprocessing
            self.model = UInt8Model(job)

        @daft.method.batch(return_dtype=LABELLED, batch_size=BATCH_SIZE)
        def label(self, images: daft.Series) -> list:
            crops = np.stack([crop_of(np.asarray(image), self.preprocessing) for image in images.to_pylist()])
            names, scores = self.model.predict(crops)
            return [{"label": name, "score": float(score)} for name, score in zip(names, scores, strict=True)]

    return Labeller()


def main() -> None:
    job = parse_job(__doc__)
    labeller = make_labeller(job)
    frame = daft.read_parquet(str(job.inputs / "urls" / "*.parquet"))
    frame = frame.with_column("image", col("image_url").download().decode_image(mode=daft.ImageMode.RGB))
    frame = frame.with_column("labelled", labeller.label(col("image")))
    frame = frame.select(
        col("image_url").alias("key"),
        col("labelled").get("label").alias("label"),
        col("labelled").get("score").alias("score"),
    )
    frame.write_parquet(str(job.output))


if __name__ == "__main__":
    main()
