"""Label a shard, then query the labels with DuckDB: they are plain Parquet.

Run it in the project's folder: `python examples/query_with_duckdb.py`.
"""

import duckdb

from pipeline import LabelConfig, run

SHARDS = "models/samples/photos.tar"  # also 's3://bucket/train-{00000..00999}.tar', folders, Parquet
LABELS = "out/examples/labels"

# Labels each image exactly once. Run again, it resumes where it stopped, and does nothing if all is done.
report = run(LabelConfig(source=[SHARDS], output=LABELS, model="efficientnet-lite0"))
print(f"{report.ok} of {report.images} images have a label")

labels = duckdb.read_parquet(f"{LABELS}/*.parquet")
print("Labels by number of images:")
duckdb.sql("""
    SELECT label, count(*) AS images, round(avg(score), 2) AS mean_score
    FROM labels WHERE status = 'ok'
    GROUP BY label ORDER BY images DESC, mean_score DESC
""").show()

print("Images for a person to check: the best two labels are close.")
duckdb.sql("""
    SELECT key, top_labels[1:2] AS best_two, round(top_scores[1] - top_scores[2], 2) AS margin
    FROM labels WHERE status = 'ok'
    ORDER BY margin LIMIT 3
""").show()
