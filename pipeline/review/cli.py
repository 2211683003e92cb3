"""`shardlabel review sample` and `review score`: takes options, writes files, tables and JSON."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import ConfigError
from pipeline.review.ranking import By

if TYPE_CHECKING:
    from pipeline.dest.plan import Plan
    from pipeline.review.draws import Draw
    from pipeline.review.sample import Sampled
    from pipeline.storage.storage import Storage

Dest = Annotated[str, typer.Argument(help="A folder or URI that `shardlabel label` wrote to.")]


class Form(StrEnum):
    """Form in which a draw is written."""

    FOLDER = "folder"
    LABEL_STUDIO = "label-studio"
    CSV = "csv"


def sample(  # noqa: PLR0913 (one argument an option)
    dest: Dest,
    output: Annotated[str, typer.Option("--output", "-o", help="A new or empty folder on this machine.")],
    by: Annotated[
        By,
        typer.Option(
            help="Measure of uncertainty: a small margin between the best two scores, a high entropy of the top-k scores, "
            "or a low best score. random: no uncertain stratum."
        ),
    ] = By.MARGIN,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each predicted class, half of them random.")] = 20,
    to: Annotated[Form, typer.Option(help="Pictures and a page, Label Studio's import, or only a list.")] = Form.FOLDER,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random order.")] = 0,
    again: Annotated[
        int | None, typer.Option(min=1, metavar="DRAW", help="Write an earlier draw again, and draw nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of output: the draw as JSON.")] = False,
) -> None:
    """Draw images for review from each predicted class: some at random, and some of which the model is unsure.

    Images of an earlier draw are not drawn again: draws are recorded in DEST. The precision is estimated from the random
    stratum alone; the uncertain images are those worth correcting.

    Examples:
        shardlabel review sample labels --per-class 20 --output look

        shardlabel review sample s3://bucket/labels --by entropy --to label-studio --output look
    """
    started = time.perf_counter()
    from pipeline.dest.plan import open_plan
    from pipeline.report.files import empty_folder
    from pipeline.review.sample import Wanted, draw_sample
    from pipeline.storage.storage import open_storage

    folder = empty_folder("--output", output)
    storage = open_storage(dest)
    plan = open_plan(storage)
    if again is not None:
        from pipeline.review.draws import find_draw, read_draws

        draw = find_draw(read_draws(storage, plan)[0], again)
    else:
        sampled = draw_sample(storage, plan, Wanted(by, per_class, seed))
        _say_what(sampled)
        draw = sampled.draw
    missing = _write(storage, plan, draw, to, folder) if draw.shown else 0
    if as_json:
        random = sum(row.stratum.value == "random" for row in draw.rows)
        values = {
            "draw": draw.number,
            "by": draw.by.value,
            "per_class": draw.per_class,
            "seed": draw.seed,
            "images": len(draw.shown),
            "classes": len({row.label_id for row in draw.shown}),
            "random": random,
            "random_shown_before": len(draw.rows) - len(draw.shown),
            "missing": missing,
            "to": to.value,
            "output": output if draw.shown else None,
            "seconds": round(time.perf_counter() - started, 3),
        }
        typer.echo(json.dumps(values))


def _say_what(sampled: Sampled) -> None:
    from pipeline.quantities import count_text, many_text

    draw = sampled.draw
    if sampled.unfinished:
        typer.echo(
            f"shardlabel: units of DEST that are not finished, and not drawn from: {count_text(sampled.unfinished)}",
            err=True,
        )
    if not draw.rows:
        typer.echo(f"nothing is left to draw: earlier draws had all {count_text(sampled.labelled)} labelled images")
        return
    if sampled.behind:
        typer.echo(
            f"shardlabel: DEST has grown, and the random strata of {many_text(sampled.behind, 'class', 'classes')} do not "
            "yet cover it; draw again with the seed of the first draw",
            err=True,
        )
    classes = len({row.label_id for row in draw.shown})
    random = sum(row.stratum.value == "random" for row in draw.shown)
    typer.echo(
        f"draw {draw.number}: {many_text(len(draw.shown), 'image')} of {many_text(classes, 'class', 'classes')}, "
        f"{count_text(random)} at random and {count_text(len(draw.shown) - random)} by {draw.by.value}"
    )
    if before := len(draw.rows) - len(draw.shown):
        typer.echo(
            f"its random stratum has {many_text(before, 'more image')} of an earlier draw: score both draws together"
        )


def _write(dest: Storage, plan: Plan, draw: Draw, to: Form, folder: Path) -> int:
    """Write a draw's files, and print the next steps; return how many pictures are missing."""
    from pipeline.quantities import count_text
    from pipeline.review.label_studio import write_tasks
    from pipeline.review.output import write_draw, write_list, write_page

    forms = {Form.FOLDER: write_page, Form.LABEL_STUDIO: write_tasks, Form.CSV: write_list}
    try:
        lines, missing = write_draw(forms[to], dest, plan, draw, folder)
    except BaseException:
        typer.echo(
            f"shardlabel: draw {draw.number} is recorded in DEST; write it with --again {draw.number} and another --output",
            err=True,
        )
        raise
    if missing:
        first = missing[0]
        typer.echo(
            f"shardlabel: {count_text(len(missing))} of {count_text(len(draw.shown))} pictures could not be read, see "
            f"{folder / 'missing.csv'}; the first is {first.row.key}: {first.why}",
            err=True,
        )
    for line in lines:
        typer.echo(line)
    return len(missing)


def score(
    dest: Dest,
    answers: Annotated[
        list[Path],
        typer.Argument(help="CSV with shard, key and label, of all draws; or Label Studio's CSV or JSON-MIN."),
    ],
    precision_target: Annotated[
        float, typer.Option(metavar="PERCENT", help="Find the score from which this percentage of labels is right.")
    ] = 95.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in one line, instead of tables.")] = False,
) -> None:
    """Estimate how many labels are right, from answers: per predicted class, and over DEST weighted by class shares.

    An answer is a class's name, number or synset id, or `none` where no class fits; an empty answer does not count. All
    figures are from the random stratum; intervals are for 95 %, Wilson's for a class.

    Example:
        shardlabel review score labels look/answers.csv
    """
    from pipeline.dest.plan import open_plan
    from pipeline.review.score import score_answers
    from pipeline.storage.storage import open_storage

    if not 1 < precision_target < 100:
        raise ConfigError(f"--precision-target is in percent, expected above 1 and below 100, got {precision_target:g}")
    storage = open_storage(dest)
    found = score_answers(storage, open_plan(storage), answers, precision_target / 100)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
        return
    from rich.console import Console

    from pipeline.review.text import print_score

    print_score(found, Console(markup=False, emoji=False, highlight=False))


def register(root: typer.Typer) -> None:
    """Add these commands to the `shardlabel` command."""
    app = typer.Typer(no_args_is_help=True, help="Review labels: draw images, and score people's answers.")
    for command in (sample, score):
        app.command()(command)
    root.add_typer(app, name="review")
