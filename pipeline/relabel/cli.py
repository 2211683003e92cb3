"""`shardlabel relabel`: takes options, gives an exit code and text."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.config import LabelConfig
from pipeline.options import options_of

# Options of `label`; those that are not given are as in OLD.
OPTIONS = (
    "output", "model", "precision", "device", "top_k", "labels", "embeddings", "batch_size", "preprocess_cpus", "actors",
    "gpus_per_actor", "cuda_graphs", "decode", "calibration", "max_pixels", "max_image_bytes", "image_timeout_s",
    "max_error_rate", "allow_private_hosts", "connections_per_host", "requests_per_second", "fetch_timeout_s",
    "overwrite", "address", "shared_filesystem", "progress",
)  # fmt: skip


AS_OLD = dict.fromkeys(
    (
        "model",
        "precision",
        "top_k",
        "labels",
        "embeddings",
        "decode",
        "max_pixels",
        "max_image_bytes",
        "image_timeout_s",
    ),
    "as OLD",
)


@options_of(LabelConfig, *OPTIONS, short={"output": "-o"}, defaults=AS_OLD)
def relabel(
    old: Annotated[str, typer.Argument(help="A folder or URI with a finished run of `shardlabel label`.")],
    where: Annotated[
        str | None,
        typer.Option(
            help="Which rows to label again, by OLD's columns: comparisons, and, or, not, in, is null. [default: all]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of output: the summary as JSON.")] = False,
    **options: object,
) -> None:
    """Label rows of a finished run again, from its own SOURCE, into another DEST; the other rows are copied.

    Options that are not given are as in OLD. Only the matching rows are decoded, and only the shards that hold some of
    them are read. A column `model` says which model each row is from. OLD is not changed. Run the same command again after
    any failure.

    Exit codes: as for `label`.

    Examples:
        shardlabel relabel labels --output better --where "score < 0.5" --model resnet18-v2

        shardlabel relabel s3://bucket/labels --output s3://bucket/again --where "status = 'unreachable'"
    """
    started = time.perf_counter()

    from pipeline.caller import native_errors_aside
    from pipeline.relabel.job import relabel as run

    with native_errors_aside():
        report = run(old, options, where, started=started)
    typer.echo(report.sentences())
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    rate = options.get("max_error_rate")
    raise typer.Exit(report.exit_code(float(rate) if isinstance(rate, (int, float)) else 1.0))
