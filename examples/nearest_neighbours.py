"""Find the images that look most like one another, by the model's embeddings and NumPy.

Run it in the project's folder: `python examples/nearest_neighbours.py`.
"""

import numpy as np
import pyarrow.parquet as pq

from pipeline import LabelConfig, run

SHARDS = "models/samples/photos.tar"
LABELS = "out/examples/embeddings"

run(LabelConfig(source=[SHARDS], output=LABELS, model="efficientnet-lite0", embeddings=True))

rows = pq.read_table(LABELS, columns=["key", "label", "embedding"], filters=[("status", "=", "ok")])
keys = rows["key"].to_pylist()
labels = rows["label"].to_pylist()
# float32 of shape (n_images, 1280), each row of length 1, so that a product of two rows is their cosine
vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

# n_images x n_images numbers: of many images take the rows in slices, or an index as FAISS or DuckDB's vss.
cosines = vectors @ vectors.T  # (n_images, n_images)
np.fill_diagonal(cosines, -1)  # nobody's neighbour is itself
for image, neighbour in enumerate(cosines.argmax(axis=1)):
    print(f"{keys[image]} ({labels[image]}) is nearest to {keys[neighbour]}: cosine {cosines[image, neighbour]:.2f}")
