"""`shardlabel label`, `verify` and `report`: options in, exit code and text out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.errors import ConfigError
from pipeline.config import LabelConfig, build_config
from pipeline.diff.cli import diff
from pipeline.evaluate.cli import evaluate
from pipeline.help_page import Command
from pipeline.options import options_of
from pipeline.relabel.cli import relabel

EXIT_FAILED = 1
DRY_RUN_IMAGES = 200


@options_of(LabelConfig, argument="source", short={"output": "-o"})
def label(
    dry_run: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="[N]",
            help=f"Label N images ({DRY_RUN_IMAGES} without N), and estimate the whole job. Writes no output.",
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="With --dry-run: hourly price of the machine or cluster. Adds the cost.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options; the command line overrides it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of output: the summary as JSON.")] = False,
    **options: object,
) -> None:
    """Label images in bulk: shards in, one Parquet file per shard out, each image exactly once.

    After any failure run the same command again: finished shards are not read again.

    Exit codes: 0 done; 1 failed, can be resumed; 2 bad usage, configuration or source; 3 over --max-error-rate, done or
    stopped early; 130 interrupted, can be resumed.

    Examples:
        shardlabel label 'shards/*.tar' --output labels --model efficientnet-lite0

        shardlabel label 's3://bucket/train-{00000..00999}.tar' --output s3://bucket/labels

        shardlabel label 'shards/*.tar' --output labels --dry-run --price 1.2

        shardlabel label 'feed/*.tar' --output labels --append

        shardlabel label images.parquet --uri-column url --carry id --output labels
    """
    started = time.perf_counter()
    settings = build_config(options, config)

    if dry_run is not None:
        _estimate(settings, dry_run, price, started, as_json=as_json)
        return
    if price is not None:
        raise ConfigError("--price is for --dry-run: give both, or neither")

    from pipeline.caller import native_errors_aside
    from pipeline.job import run

    with native_errors_aside():
        report = run(settings, started=started)
    typer.echo(report.sentences())
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    raise typer.Exit(report.exit_code(settings.max_error_rate))


def _estimate(settings: LabelConfig, images: int, price: float | None, started: float, *, as_json: bool) -> None:
    from pipeline.caller import native_errors_aside
    from pipeline.dry_run import dry_run

    with native_errors_aside():
        estimate = dry_run(settings, images, price=price, started=started)
    typer.echo(estimate.sentences())
    if as_json:
        typer.echo(json.dumps(asdict(estimate)))


class LabelCommand(Command):
    """`label`, whose `--dry-run` may have no number: typer has no options with an optional value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's own type has no public name)
        """Add the default number to a `--dry-run` without one."""
        ends = args.index("--") if "--" in args else len(args)
        for place in reversed([i for i, word in enumerate(args[:ends]) if word == "--dry-run"]):
            if not args[place + 1 : place + 2] or not args[place + 1].lstrip("-").isdecimal():
                args = [*args[: place + 1], str(DRY_RUN_IMAGES), *args[place + 1 :]]
        return super().parse_args(ctx, args)


def parse_label(words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the arguments of `label` as the command does, without running it.

    Returns:
        (settings, others): the arguments that are fields of `LabelConfig`, None where not given; and the others.

    Raises:
        typer's UsageError: `label` has no such option, or a value is not a number where one is expected.
    """
    app = typer.Typer()
    app.command(cls=LabelCommand)(label)
    others = dict(typer.main.get_command(app).make_context("shardlabel label", list(words)).params)
    return {name: others.pop(name) for name in LabelConfig.model_fields}, others


def verify(
    dest: Annotated[str, typer.Argument(help="A folder or URI that `shardlabel label` wrote to, or a prediction log.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check every commit record against its Parquet file: rows, SHA-256, columns, no duplicate key. Exit 0 or 1.

    A prediction log has no records: each file is compared with its own metadata.

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
        state = "every file is as recorded" if found.ok else f"{found.num_faults} faults"
        typer.echo(f"{found.finished} of {found.units} units finished, {found.rows} rows read: {state}")
    raise typer.Exit(0 if found.ok else EXIT_FAILED)


def report(
    dest: Annotated[str, typer.Argument(help="A folder or URI that `shardlabel label` wrote to, or a prediction log.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Where to write the page; replaces an earlier one.")
    ] = "report.html",
) -> None:
    """Make one HTML page about a run, finished or not: counts, errors, labels, scores, throughput, sample images.

    The page is one self-contained file that makes no connection. The images are read from SOURCE.

    Example:
        shardlabel report s3://bucket/labels --output labels.html
    """
    from pipeline.report.page import write_report

    typer.echo(write_report(dest, output))


def register(app: typer.Typer) -> None:
    """Add this folder's commands to the console command."""
    app.command(cls=LabelCommand)(label)
    app.command()(evaluate)
    app.command()(relabel)
    app.command()(diff)
    app.command()(verify)
    app.command()(report)
