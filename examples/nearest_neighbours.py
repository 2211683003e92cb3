"""Find the most similar images, with the model's embeddings and NumPy.

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
# float32 of shape (n_images, 1280). Rows are normalised, so the dot product of two rows is their cosine.
vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

# The matrix has n_images squared numbers. For many images, use slices of rows, or an index (FAISS, DuckDB's vss).
cosines = vectors @ vectors.T  # (n_images, n_images)
np.fill_diagonal(cosines, -1)  # an image is not its own neighbour
for image, neighbour in enumerate(cosines.argmax(axis=1)):
    print(f"{keys[image]} ({labels[image]}) is nearest to {keys[neighbour]}: cosine {cosines[image, neighbour]:.2f}")
