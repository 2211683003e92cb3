"""What clip-retrieval's inference does: webdataset, torch's DataLoader with workers that preprocess, one process infers.

    python -m benchmarks.peers.clip_retrieval --inputs DIR --output DIR --model M --precision P

After clip_inference/reader.py and runner.py of clip-retrieval 2.45: Pillow in the workers, float32 tensors to the main
process through shared memory, a Parquet file per 1,000 rows or more at the end of each write batch. The model is the same
ONNX file, on as many threads as there are cores, since only one process infers (torch would do so too). In its favour:
batches of 64 in place of 256, which on a CPU gain nothing and start later.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.peers.common import FloatModel, normalised, parse_job, resize_and_crop
from models.catalog import load_spec

BATCH_SIZE = 64
WRITE_BATCH = 1000


class Preprocess:
    """A sample of the reader to a key and a tensor."""

    def __init__(self, model: str) -> None:
        self.spec = load_spec(model)

    def __call__(self, item: dict) -> dict:
        image = Image.open(io.BytesIO(item["jpg"])).convert("RGB")
        tensor = normalised(resize_and_crop(image, self.spec.preprocessing), self.spec)
        return {"image_filename": item["__key__"], "image_tensor": tensor}


def has_image(item: dict) -> bool:
    return "jpg" in item


class Writer:
    """Keep rows until there are enough for a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.rows: dict[str, list] = {"key": [], "label": [], "score": []}

    def add(self, keys: list, labels: list, scores: list) -> None:
        for name, values in (("key", keys), ("label", labels), ("score", scores)):
            self.rows[name] += values
        if len(self.rows["key"]) >= WRITE_BATCH:
            self.flush()

    def flush(self) -> None:
        if self.rows["key"]:
            pq.write_table(pa.table(self.rows), self.folder / f"metadata_{self.number:06d}.parquet")
            self.number += 1
            self.rows = {name: [] for name in self.rows}


def main() -> None:
    job = parse_job(__doc__)
    dataset = wds.WebDataset(job.tars, shardshuffle=False, handler=wds.handlers.warn_and_continue)
    dataset = dataset.select(has_image).map(Preprocess(job.model), handler=wds.handlers.warn_and_continue)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=False, num_workers=job.cpus, prefetch_factor=2)
    model, writer = FloatModel(job, num_threads=job.cpus), Writer(job.output)
    for batch in loader:
        labels, scores = model.predict(batch["image_tensor"].numpy())
        writer.add(batch["image_filename"], labels.tolist(), scores.tolist())
    writer.flush()


if __name__ == "__main__":
    main()
