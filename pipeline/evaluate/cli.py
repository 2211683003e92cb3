"""`shardlabel evaluate`: takes options, writes tables, JSON, a page and a calibration."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from models.device import SimulatedDevice
from models.errors import ConfigError, StorageError
from pipeline.config import LabelConfig, build_config
from pipeline.options import options_of

PRECISION_TARGET = 95.0
_say = partial(typer.echo, err=True)
_VARIANT = "a precision, a decode mode, a model, or these joined by ':' as in efficientnet-lite0:int8:exact"


@options_of(LabelConfig, "model", "precision", "device", "decode", "format", "image_column", "limit", "calibration")
def evaluate(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Labelled images: tars with .cls or .json members, Parquet with a label column, or folders named by "
            "class; files, globs, URIs as for `label`."
        ),
    ],
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help=f"Compare two variants on the same images, each {_VARIANT}."),
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Key of .json members, or Parquet column, with the class. [default: found]")
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Fit a calibration to half of the images, measure it on the other half, and write it as JSON for "
            "--calibration of `label` and `serve`.",
        ),
    ] = None,
    precision_target: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help=f"With --fit: precision that accepted labels should have, in percent. [default: {PRECISION_TARGET:g}]",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write an HTML page with plots, self-contained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in one line, instead of tables.")] = False,
    **options: object,
) -> None:
    """Measure top-1 and top-5 against the labels in SOURCE, beside the figures reported for the model.

    A class may be given as index, synset id or name. An image that cannot be decoded counts as wrong. Intervals are
    Wilson's, for 95 %; the reported figures are for ImageNet's 50,000 validation images.

    Examples:
        shardlabel evaluate 'val/*.tar' --model efficientnet-lite0

        shardlabel evaluate val --model efficientnet-lite0 --decode exact --output accuracy.html

        shardlabel evaluate val.parquet --model efficientnet-lite0 --compare int8 fp32

        shardlabel evaluate 'val/*.tar' --model efficientnet-lite0 --fit calibration.json --precision-target 98
    """
    from pipeline.evaluate.evaluate import compare as compare_variants
    from pipeline.evaluate.evaluate import evaluate_source
    from pipeline.evaluate.results import Comparison, Evaluation

    config = build_config({**options, "source": source, "output": "none"})
    if isinstance(config.device, SimulatedDevice):
        raise ConfigError("--device: a simulated device makes up its labels, so there is nothing to measure")
    _check(fit, precision_target, compared=compare is not None, calibrated=config.calibration is not None)
    for option, path in (("--output", output), ("--fit", fit)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            what = "that is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
            raise ConfigError(f"{option} {path}: {what}")
    result: Evaluation | Comparison
    if compare:
        result = compare_variants(config, *compare, _say, label_field=label_field)
    else:
        precision = None if fit is None else precision_target or PRECISION_TARGET
        result = evaluate_source(config, _say, label_field=label_field, precision=precision)
    if output is not None:
        from pipeline.evaluate.text import build_page
        from pipeline.storage.uris import without_secrets

        _write("--output", output, build_page(result, without_secrets(" ".join(config.source))))
    if fit is not None and isinstance(result, Evaluation) and result.fit is not None:
        _write("--fit", fit, result.fit.calibration.to_text())
    if as_json:
        typer.echo(json.dumps(result.as_json()))
        return
    from rich.console import Console

    from pipeline.evaluate.text import print_comparison, print_evaluation

    console = Console(markup=False, emoji=False, highlight=False)
    if isinstance(result, Comparison):
        print_comparison(result, console)
    else:
        print_evaluation(result, console)


def _check(fit: Path | None, target: float | None, *, compared: bool, calibrated: bool) -> None:
    if target is not None and fit is None:
        raise ConfigError("--precision-target is for --fit: give both, or neither")
    if target is not None and not 0 < target < 100:
        raise ConfigError(f"--precision-target is in percent, above 0 and below 100, got {target:g}")
    if fit is not None and (compared or calibrated):
        other = "--compare measures two variants" if compared else "--calibration has calibrated the scores already"
        raise ConfigError(f"--fit is for one uncalibrated model, and {other}: give one of them")
    if compared and calibrated:
        raise ConfigError("--calibration is for one variant, and --compare measures two: give one of them")


def _write(option: str, path: Path, text: str) -> None:
    from pipeline.report.files import write_page

    try:
        _say(f"shardlabel: wrote {write_page(str(path), text)}")
    except StorageError as err:
        raise ConfigError(f"{option}: {err}") from err
