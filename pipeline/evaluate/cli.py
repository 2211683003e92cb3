"""`shardlabel evaluate`: options in, tables, JSON and a page out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from models.errors import ConfigError

_WAY = "a precision, a decode mode, a model, or these joined by ':' as in efficientnet-lite0:int8:exact"


def evaluate(  # noqa: PLR0913 (one argument an option)
    source: Annotated[
        list[str],
        typer.Argument(
            help="Labelled images: tars with .cls or .json members, Parquet with a label column, or folders named by "
            "class; files, globs, URIs as for `label`."
        ),
    ],
    model: Annotated[str, typer.Option(help="A name of `shardlabel models list`, or an .onnx file.")] = "resnet18-v2",
    precision: Annotated[str, typer.Option(help="auto, fp32, int8 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decode: Annotated[str, typer.Option(help="fast, or exact as the reference.")] = "fast",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help=f"Compare two ways on the same images: each {_WAY}.")
    ] = None,
    format: Annotated[str, typer.Option(help="auto, webdataset, parquet or images.")] = "auto",
    label_field: Annotated[
        str | None, typer.Option(help="Key of .json members, or Parquet column, with the class. [default: found]")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Parquet: the column with the images.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write an HTML page with plots, self-contained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in one line, instead of tables.")] = False,
) -> None:
    """Measure top-1 and top-5 against the labels in SOURCE, beside what was reported for the model.

    A class may be written as index, synset id or name. An image that cannot be decoded counts as wrong. Intervals are
    Wilson's, for 95 %; the reported figures are of ImageNet's 50,000 validation images.

    Examples:
        shardlabel evaluate 'val/*.tar' --model efficientnet-lite0

        shardlabel evaluate val --model efficientnet-lite0 --decode exact --output accuracy.html

        shardlabel evaluate val.parquet --model efficientnet-lite0 --compare int8 fp32
    """
    from models.decode.decode import DecodeMode
    from models.inference.classifier import Device
    from pipeline.config import SourceFormat
    from pipeline.evaluate.evaluate import Measured, evaluate_source
    from pipeline.evaluate.evaluate import compare as compare_ways

    _one_of("precision", precision, ("auto", "fp32", "int8", "fp16"))
    _one_of("device", device, tuple(Device))
    _one_of("decode", decode, tuple(DecodeMode))
    _one_of("format", format, tuple(SourceFormat))
    wanted = Measured(
        source=tuple(source),
        model=model,
        precision=precision,
        device=Device(device),
        mode=DecodeMode(decode),
        format=SourceFormat(format),
        label_field=label_field,
        image_column=image_column,
        limit=limit,
    )
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.absolute().parent}")
    result = compare_ways(wanted, *compare, _say) if compare else evaluate_source(wanted, _say)
    if output is not None:
        from pipeline.evaluate.page import build_page
        from pipeline.storage.uris import without_secrets

        try:
            output.write_text(build_page(result, without_secrets(" ".join(source))), encoding="utf-8")
        except OSError as err:
            raise ConfigError(f"--output {output} cannot be written: {err.strerror or err}") from err
        _say(f"shardlabel: wrote {output}")
    if as_json:
        typer.echo(json.dumps(result.as_json()))
        return
    from rich.console import Console

    from pipeline.evaluate.results import Comparison
    from pipeline.evaluate.text import print_comparison, print_evaluation

    console = Console()
    if isinstance(result, Comparison):
        print_comparison(result, console)
    else:
        print_evaluation(result, console)


def _one_of(name: str, value: str, kinds: tuple[str, ...]) -> None:
    if value not in kinds:
        raise ConfigError(f"--{name} must be one of {', '.join(kinds)}, got {value!r}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
