"""`shardlabel evaluate`: options in, tables, JSON and a page out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from models.device import SimulatedDevice
from models.errors import ConfigError
from pipeline.config import LabelConfig, build_config
from pipeline.options import options_of

_WAY = "a precision, a decode mode, a model, or these joined by ':' as in efficientnet-lite0:int8:exact"


@options_of(LabelConfig, "model", "precision", "device", "decode", "format", "image_column", "limit")
def evaluate(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Labelled images: tars with .cls or .json members, Parquet with a label column, or folders named by "
            "class; files, globs, URIs as for `label`."
        ),
    ],
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help=f"Compare two ways on the same images: each {_WAY}.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Key of .json members, or Parquet column, with the class. [default: found]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write an HTML page with plots, self-contained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in one line, instead of tables.")] = False,
    **options: object,
) -> None:
    """Measure top-1 and top-5 against the labels in SOURCE, beside what was reported for the model.

    A class may be written as index, synset id or name. An image that cannot be decoded counts as wrong. Intervals are
    Wilson's, for 95 %; the reported figures are of ImageNet's 50,000 validation images.

    Examples:
        shardlabel evaluate 'val/*.tar' --model efficientnet-lite0

        shardlabel evaluate val --model efficientnet-lite0 --decode exact --output accuracy.html

        shardlabel evaluate val.parquet --model efficientnet-lite0 --compare int8 fp32
    """
    from pipeline.evaluate.evaluate import Measured, evaluate_source
    from pipeline.evaluate.evaluate import compare as compare_ways

    config = build_config({**options, "source": source, "output": "none"})
    if isinstance(config.device, SimulatedDevice):
        raise ConfigError("--device: a simulated device makes up its labels, so there is nothing to measure")
    wanted = Measured(
        source=config.source,
        model=config.model,
        precision=config.precision,
        device=config.device,
        mode=config.decode,
        format=config.format,
        label_field=label_field,
        image_column=config.image_column,
        limit=config.limit,
    )
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.absolute().parent}")
    result = compare_ways(wanted, *compare, _say) if compare else evaluate_source(wanted, _say)
    if output is not None:
        from pipeline.evaluate.page import build_page
        from pipeline.storage.uris import without_secrets

        try:
            output.write_text(build_page(result, without_secrets(" ".join(config.source))), encoding="utf-8")
        except OSError as err:
            raise ConfigError(f"--output {output} cannot be written: {err.strerror or err}") from err
        _say(f"shardlabel: wrote {output}")
    if as_json:
        typer.echo(json.dumps(result.as_json()))
        return
    from rich.console import Console

    from pipeline.evaluate.results import Comparison
    from pipeline.evaluate.text import print_comparison, print_evaluation

    console = Console(markup=False, emoji=False, highlight=False)
    if isinstance(result, Comparison):
        print_comparison(result, console)
    else:
        print_evaluation(result, console)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
