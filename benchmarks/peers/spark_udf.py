"""Spark as in the notebook that Daft published for it: binaryFile, two pandas UDFs, Parquet.

    python -m benchmarks.peers.spark_udf --inputs DIR --output DIR --model M --precision P

After benchmarking/ai/image_classification/spark.ipynb of Daft, on `local[cores]`. In its favour: the tensors go to Arrow
as arrays, where the notebook makes lists of 150,528 Python floats; Pillow resizes bytes.
"""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pandas as pd
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql.functions import col, pandas_udf

from benchmarks.peers.common import Job, float_model_of, normalised, parse_job, resize_and_crop, spec_of
from models.spec import Layout

MAX_RECORDS_PER_BATCH = 100


def make_udfs(job: Job) -> tuple:
    """Return decode_and_preprocess and predict_batch."""

    @pandas_udf("array<float>")
    def decode_and_preprocess(contents: pd.Series) -> pd.Series:
        spec = spec_of(job.model)
        tensors = []
        for content in contents:
            image = Image.open(io.BytesIO(content)).convert("RGB")
            tensors.append(normalised(resize_and_crop(image, spec.preprocessing), spec).ravel())
        return pd.Series(tensors)

    @pandas_udf("struct<label: string, score: float>")
    def predict_batch(tensors: pd.Series) -> pd.DataFrame:
        model = float_model_of(job)
        side = model.spec.preprocessing.crop
        shape = (3, side, side) if model.spec.input.layout is Layout.NCHW else (side, side, 3)
        labels, scores = model.predict(np.stack(tensors.to_list()).reshape(-1, *shape).astype(np.float32))
        return pd.DataFrame({"label": labels, "score": scores})

    return decode_and_preprocess, predict_batch


def main() -> None:
    job = parse_job(__doc__)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{job.cpus}]")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(MAX_RECORDS_PER_BATCH))
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    decode_and_preprocess, predict_batch = make_udfs(job)
    frame = spark.read.format("binaryFile").load(str(job.inputs / "images"))
    frame = (
        frame.withColumn("processed_image", decode_and_preprocess(col("content")))
        .filter(col("processed_image").isNotNull())
        .withColumn("labelled", predict_batch(col("processed_image")))
        .select(col("path").alias("key"), col("labelled.label"), col("labelled.score"))
    )
    frame.write.mode("overwrite").parquet(str(job.output))
    spark.stop()


if __name__ == "__main__":
    main()
