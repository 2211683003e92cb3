"""Ray Data as in Ray's own published benchmark of image classification: download a column, two maps, actors.

    python -m benchmarks.peers.ray_published --inputs DIR --output DIR --model M --precision P

After release/nightly_tests/multimodal_inference_benchmarks/image_classification/ray_data_main.py of Ray: each step
deletes the column it has used up. In its favour: paths on this disk in place of S3, Parquet files of 100 paths so that
every core has work from the start, and Pillow's resize of bytes in place of torchvision's of floats.
"""

from __future__ import annotations

import io

import numpy as np
import ray
from PIL import Image
from ray.data.expressions import download

from benchmarks.peers.common import FloatModel, Job, normalised, parse_job, resize_and_crop, spec_of
from benchmarks.peers.ray_docs import actors, start_ray

BATCH_SIZE = 100


def deserialize_image(row: dict) -> dict:
    row["image"] = np.array(Image.open(io.BytesIO(row.pop("bytes"))).convert("RGB"))
    return row


class Transform:
    """A full frame to a normalised tensor."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, row: dict) -> dict:
        spec = spec_of(self.model)
        image = Image.fromarray(row.pop("image"))
        row["norm_image"] = normalised(resize_and_crop(image, spec.preprocessing), spec)
        return row


class ResNetActor:
    """An actor with a session."""

    def __init__(self, job: Job) -> None:
        self.model = FloatModel(job)

    def __call__(self, batch: dict) -> dict:
        batch["label"], batch["score"] = self.model.predict(batch.pop("norm_image"))
        return batch


def main() -> None:
    job = parse_job(__doc__)
    start_ray(job)
    transform = Transform(job.model)
    dataset = (
        ray.data.read_parquet(str(job.inputs / "urls"))
        .with_column("bytes", download("image_url"))
        .map(deserialize_image)
        .map(lambda row: transform(row))
        .map_batches(ResNetActor, fn_constructor_args=(job,), batch_size=BATCH_SIZE, **actors(job))
        .rename_columns({"image_url": "key"})
        .select_columns(["key", "label", "score"])
    )
    dataset.write_parquet(str(job.output))


if __name__ == "__main__":
    main()
