"""`shardlabel label`, `verify` and `report`: options in, exit code and text out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from models.errors import ConfigError
from pipeline.evaluate.cli import evaluate

if TYPE_CHECKING:
    from pipeline.config import LabelConfig
    from pipeline.summary import RunReport

EXIT_FAILED = 1
EXIT_OVER_ERROR_RATE = 3
EXIT_INTERRUPTED = 130
DRY_RUN_IMAGES = 200


def label(  # noqa: PLR0913 (one argument an option)
    source: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, brace ranges as {00000..00999}.tar, or @list.txt; paths or URIs."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder or URI of the Parquet files.")] = None,
    format: Annotated[str | None, typer.Option(help="auto, webdataset, parquet or images. [default: auto]")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name of `shardlabel models list`, or an .onnx file. [default: resnet18-v2]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, int8 or fp16. [default: auto]")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda or tensorrt. [default: auto] For benchmarks also simulated:RATE, whose labels are made up."
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Labels per image, best first. [default: 5]")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class names: name (the first synonym), wnid, or all. [default: name]")
    ] = None,
    embeddings: Annotated[
        bool | None, typer.Option("--embeddings", help="Also the model's penultimate features.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Parquet: the column with the images.")] = None,
    key_column: Annotated[str | None, typer.Option(help="Parquet: the column that becomes `key`.")] = None,
    carry: Annotated[str | None, typer.Option(help="Parquet: columns copied through, as a,b.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per inference. [default: 16 on a CPU, 256 on a GPU]")
    ] = None,
    preprocess_cpus: Annotated[
        int | None, typer.Option(help="CPUs that decode, in tasks of their own. [default: chosen]")
    ] = None,
    actors: Annotated[
        str | None, typer.Option(help="Actors that hold the model, N or MIN:MAX. [default: chosen]")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="Share of a GPU that each actor has: 0.5 puts two on a GPU. [default: 1]")
    ] = None,
    cuda_graphs: Annotated[
        bool | None, typer.Option("--cuda-graphs", help="On a GPU: record a batch's kernels once, and replay them.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="fused (decode and label in one actor), two-stage, or auto. [default: auto]")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="fast, or exact: the reference preprocessing pixel for pixel. [default: fast]")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Larger images are too_large. [default: 100000000]")] = None,
    max_image_bytes: Annotated[int | None, typer.Option(help="Likewise, in bytes. [default: 67108864]")] = None,
    image_timeout_s: Annotated[
        float | None,
        typer.Option(
            help="An image that takes longer to decode is undecodable, one that the model takes longer for unsupported "
            "(20 times what a batch usually takes, if that is more). [default: 60]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Label only so many images.")] = None,
    dry_run: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="[N]",
            help=f"Label N images ({DRY_RUN_IMAGES} without N) aside, and say what all would take. Writes no output.",
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="With --dry-run: of the machine or cluster, an hour. Adds the cost.")
    ] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Exit 3 when a larger share could not be labelled. [default: 1.0]")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Start the output anew instead of resuming it.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="These options as YAML; the command line comes first.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join. [default: $RAY_ADDRESS, else a local Ray]")
    ] = None,
    shared_filesystem: Annotated[
        bool | None,
        typer.Option("--shared-filesystem", help="On several nodes: all see local SOURCE and DEST under one name."),
    ] = None,
    progress: Annotated[str | None, typer.Option(help="auto, plain or none. [default: auto]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of output: the summary as JSON.")] = False,
) -> None:
    """Label images in bulk: shards in, one Parquet file per shard out, each image exactly once.

    Run the same command again after anything went wrong: finished shards are not read again.

    Exit codes: 0 done; 1 failed, can be resumed; 2 bad usage, configuration or source; 3 done, over --max-error-rate;
    130 interrupted, can be resumed.

    Examples:
        shardlabel label 'shards/*.tar' --output labels --model efficientnet-lite0

        shardlabel label 's3://bucket/train-{00000..00999}.tar' --output s3://bucket/labels

        shardlabel label 'shards/*.tar' --output labels --dry-run --price 1.2
    """
    started = time.perf_counter()
    options: dict[str, Any] = dict(locals())
    for name in ("started", "config", "as_json", "dry_run", "price"):
        options.pop(name)
    options["carry"] = tuple(carry.split(",")) if carry else None
    options["source"] = tuple(source) if source else None

    from pipeline.config import build_config

    settings = build_config(options, config)

    if dry_run is not None:
        _estimate(settings, dry_run, price, started, as_json=as_json)
        return
    if price is not None:
        raise ConfigError("--price is for --dry-run: give both, or neither")

    from pipeline.job import run
    from pipeline.quiet import native_errors_aside

    with native_errors_aside():
        report = run(settings, started=started)
    typer.echo(report.sentences())
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    raise typer.Exit(_exit_code(report, settings.max_error_rate))


def _estimate(settings: LabelConfig, images: int, price: float | None, started: float, *, as_json: bool) -> None:
    from pipeline.dry_run import dry_run
    from pipeline.quiet import native_errors_aside

    with native_errors_aside():
        estimate = dry_run(settings, images, price=price, started=started)
    typer.echo(estimate.sentences())
    if as_json:
        typer.echo(json.dumps(asdict(estimate)))


class LabelCommand(TyperCommand):
    """`label`, whose `--dry-run` may stand without a number: typer has no options with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own type has no public name)
        """Give a `--dry-run` without a number the usual one."""
        ends = args.index("--") if "--" in args else len(args)
        for place in reversed([i for i, word in enumerate(args[:ends]) if word == "--dry-run"]):
            if not args[place + 1 : place + 2] or not args[place + 1].lstrip("-").isdecimal():
                args = [*args[: place + 1], str(DRY_RUN_IMAGES), *args[place + 1 :]]
        return super().parse_args(ctx, args)


def _exit_code(report: RunReport, max_error_rate: float) -> int:
    if report.status == "interrupted":
        return EXIT_INTERRUPTED
    if report.status == "failed":
        return EXIT_FAILED
    return EXIT_OVER_ERROR_RATE if report.error_rate > max_error_rate else 0


def verify(
    dest: Annotated[str, typer.Argument(help="A folder or URI that `shardlabel label` wrote to.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check every commit record against its Parquet file: rows, SHA-256, columns, no key twice. Exit 0 or 1.

    Example:
        shardlabel verify s3://bucket/labels
    """
    from pipeline.dest.verify import verify_dest
    from pipeline.storage.storage import open_storage

    found = verify_dest(open_storage(dest))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "ok": found.ok}))
    else:
        for fault in found.faults:
            typer.echo(f"fault: {fault}")
        if found.num_faults > len(found.faults):
            typer.echo(f"and {found.num_faults - len(found.faults)} more faults")
        state = "all is as recorded" if found.ok else f"{found.num_faults} faults"
        typer.echo(f"{found.finished} of {found.units} units finished, {found.rows} rows read: {state}")
    raise typer.Exit(0 if found.ok else EXIT_FAILED)


def report(
    dest: Annotated[str, typer.Argument(help="A folder or URI that `shardlabel label` wrote to.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the page goes.")] = "report.html",
) -> None:
    """Make one HTML page about a run, finished or not: counts, errors, labels, scores, throughput, sample images.

    The page needs nothing else: no script, no connection. The images are read from SOURCE.

    Example:
        shardlabel report s3://bucket/labels --output labels.html
    """
    from pipeline.report.report import write_report

    typer.echo(write_report(dest, output))


def register(app: typer.Typer) -> None:
    """Add this folder's commands to the console command."""
    app.command(cls=LabelCommand)(label)
    app.command()(evaluate)
    app.command()(verify)
    app.command()(report)
