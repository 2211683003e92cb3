"""Ray Data as its documentation has it: read_webdataset, map to float32 tensors, map_batches in actors, write_parquet.

    python -m benchmarks.peers.ray_docs --inputs DIR --output DIR --model M --precision P

After "Working with Images" and "End-to-end: Offline Batch Inference" of Ray 2.60. In its favour: the reader is told to
leave JPEGs encoded (its default puts full frames into blocks), Pillow resizes bytes and not floats as torchvision would
in the published order, and where inference takes the time two actors share the CPUs with the decode tasks, which the
documentation leaves to the reader.
"""

from __future__ import annotations

import io

import ray
from PIL import Image

from benchmarks.peers.common import FloatModel, Job, normalised, parse_job, resize_and_crop, spec_of

BATCH_SIZE = 64


class Preprocess:
    """A row of the reader to a row with a float32 tensor."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, row: dict) -> dict:
        spec = spec_of(self.model)
        image = Image.open(io.BytesIO(row["jpg"])).convert("RGB")
        return {"key": row["__key__"], "image": normalised(resize_and_crop(image, spec.preprocessing), spec)}


class ImageClassifier:
    """An actor with a session."""

    def __init__(self, job: Job) -> None:
        self.model = FloatModel(job)

    def __call__(self, batch: dict) -> dict:
        label, score = self.model.predict(batch["image"])
        return {"key": batch["key"], "label": label, "score": score}


def actors(job: Job) -> dict:
    """Divide the CPUs: actors ask for none, as actors on GPUs do, so that tasks may have all, and the system shares."""
    size = job.cpus if job.inference_bound else max(1, job.cpus // 2)
    return {"compute": ray.data.ActorPoolStrategy(size=size), "num_cpus": 0}


def start_ray(job: Job) -> None:
    """Start a local Ray without what only a person would look at."""
    ray.init(num_cpus=job.cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False


def main() -> None:
    job = parse_job(__doc__)
    start_ray(job)
    preprocess = Preprocess(job.model)
    dataset = (
        ray.data.read_webdataset(job.tars, decoder=None, suffixes=["jpg"])
        .map(lambda row: preprocess(row))
        .map_batches(ImageClassifier, fn_constructor_args=(job,), batch_size=BATCH_SIZE, **actors(job))
    )
    dataset.write_parquet(str(job.output))


if __name__ == "__main__":
    main()
