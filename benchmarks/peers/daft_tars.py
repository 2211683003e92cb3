"""Daft with its own reader of WebDataset tars and its own decoder.

    python -m benchmarks.peers.daft_tars --inputs DIR --output DIR --model M --precision P

`read_webdataset` (Daft 0.7.2x) yields each member as a reference into its tar, which `decode_image_file` opens. The rest
is `daft_own`.
"""

from __future__ import annotations

import daft
from daft import col
from daft.functions import decode_image_file

from benchmarks.peers.common import parse_job
from benchmarks.peers.daft_own import make_labeller


def main() -> None:
    job = parse_job(__doc__)
    labeller = make_labeller(job)
    frame = daft.read_webdataset(str(job.inputs / "shards" / "*.tar"))
    frame = frame.select(col("__key__").alias("key"), decode_image_file(col("jpg"), mode="RGB").alias("image"))
    frame = frame.with_column("labelled", labeller.label(col("image")))
    frame = frame.select(
        col("key"),
        col("labelled").get("label").alias("label"),
        col("labelled").get("score").alias("score"),
    )
    frame.write_parquet(str(job.output))


if __name__ == "__main__":
    main()
