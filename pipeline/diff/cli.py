"""`shardlabel diff`: takes options, writes tables, JSON, a page and pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def diff(
    old: Annotated[str, typer.Argument(help="A folder or URI with a finished `label` or `relabel` run.")],
    new: Annotated[str, typer.Argument(help="Another one, of the same images.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Also write an HTML page with pictures of flips, self-contained."),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Also write images whose label flipped, and flips.csv that lists them, into an empty folder."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of output: the differences as JSON.")] = False,
) -> None:
    """Compare what two runs say about the same images: labels that flipped, scores that shifted, rows in one only.

    Rows are joined by shard and key, whatever plans the runs had; rows of a prediction log of `serve` are joined by the
    SHA-256 of the image, and the last answer for an image counts. Pictures are read from OLD's SOURCE. The exit code is 0
    even if there are differences.

    Examples:
        shardlabel diff labels-int8 labels-fp32 --output diff.html

        shardlabel diff s3://bucket/labels s3://bucket/better --json

        shardlabel diff labels better --examples flips
    """
    from rich.console import Console

    from pipeline.diff.compare import compare
    from pipeline.diff.pictures import chosen_flips, write_examples
    from pipeline.diff.text import build_page, print_diff
    from pipeline.report.files import empty_folder, write_page
    from pipeline.report.pictures import read_thumbnails

    folder = None if examples is None else empty_folder("--examples", str(examples))
    found = compare(old, new)
    print_diff(found.report, Console(markup=False, emoji=False, highlight=False))
    source, flips = found.source, list(chosen_flips(found.flips, everything=folder is not None))
    if folder is not None:
        thumbnails, problems = write_examples(folder, found, flips)
        typer.echo(f"shardlabel: wrote {len(thumbnails)} images and flips.csv to {folder}", err=True)
    else:
        wanted = flips if output is not None else []
        thumbnails, problems = read_thumbnails(source.dest, source.plan, source.metadata, wanted)
    if output is not None:
        written = write_page(output, build_page(found, flips, thumbnails, problems))
        typer.echo(f"shardlabel: wrote {written}", err=True)
    for problem in problems[:5]:
        typer.echo(f"shardlabel: warning: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(found.report)))
