"""Put labelling between your own operators: read shards, label, keep the sure ones, make thumbnails, write.

Run it in the project's folder: `python examples/ray_data_pipeline.py`.
"""

import io

import pyarrow.parquet as pq
from PIL import Image
from ray.data import SaveMode
from ray.data.expressions import col

from pipeline import label, read_shards

SHARDS = "models/samples/photos.tar"
THUMBNAILS = "out/examples/thumbnails"


def make_thumbnail(row: dict) -> dict:
    """Replace an image's bytes with those of a small WebP."""
    image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
    image.thumbnail((96, 96))
    file = io.BytesIO()
    image.save(file, "WEBP")
    return {**row, "bytes": file.getvalue()}


shards = read_shards(SHARDS)  # columns: shard, key, bytes, status, error
labelled = label(shards, model="efficientnet-lite0", top_k=1)  # adds label, label_id, score, ...
sure = labelled.filter(expr=col("score") > 0.3)  # also drops bad images: their score is null
thumbnails = sure.map(make_thumbnail)
# So far nothing has run. This line reads, labels and writes, block by block, on all of Ray's CPUs.
thumbnails.select_columns(["key", "label", "score", "bytes"]).write_parquet(THUMBNAILS, mode=SaveMode.OVERWRITE)

for row in pq.read_table(THUMBNAILS).to_pylist():
    print(f"{row['key']}: {row['label']} ({row['score']:.2f}), a thumbnail of {len(row['bytes'])} bytes")
