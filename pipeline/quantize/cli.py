"""`shardlabel models quantize`. It is here, and not with the other `models` commands, because it reads SOURCE."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from models.errors import ConfigError, QuantizationError
from pipeline.config import LabelConfig, build_config
from pipeline.options import options_of

METHODS = ("minmax", "percentile", "entropy")


@options_of(LabelConfig, "decode", "format")
def quantize(  # noqa: PLR0913 (one argument an option)
    name: Annotated[str, typer.Argument(help="A model of the catalog, or one that you added, with fp32.")],
    calibration: Annotated[
        list[str], typer.Option(metavar="SRC", help="Labelled images, as for `evaluate`; may be given several times.")
    ],
    max_drop: Annotated[float, typer.Option(help="Points of top-1 that may be lost on the held-out images.")] = 0.5,
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many images set the ranges of the activations; the others are held out to measure accuracy.",
        ),
    ] = 128,
    limit: Annotated[int, typer.Option(min=1, help="Most images to read; each takes 150 kB of memory.")] = 2000,
    methods: Annotated[str, typer.Option(help="Methods to set the ranges; the best is kept.")] = ",".join(METHODS),
    fp16: Annotated[bool, typer.Option(help="Also measure float16, as it is made for GPUs.")] = True,
    label_field: Annotated[str | None, typer.Option(help="As for `evaluate`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
    **options: object,
) -> None:
    """Make an int8 model, measure it on your own images beside fp32 and fp16, and register it if it loses little enough.

    Static int8: QDQ, per channel, uint8 activations, int8 weights at scales that are right on every CPU. Some images of
    SRC set the ranges; the others are held out. If top-1 on these falls by more than --max-drop, nothing is registered,
    and the exit code is 1. Afterwards --precision int8 (and auto, on a CPU) uses it; `models remove` undoes it.

    Example:
        shardlabel models quantize resnet18-v2 --calibration 'val/*.tar'
    """
    from pipeline.quantize.quantize import QuantizeRequest
    from pipeline.quantize.quantize import quantize as run

    chosen = tuple(one.strip() for one in methods.split(",") if one.strip())
    if not chosen or set(chosen) - set(METHODS):
        raise ConfigError(f"--methods must be some of {', '.join(METHODS)}, got {methods!r}")
    config = build_config({**options, "source": calibration, "output": "none", "model": name, "limit": limit})
    logging.getLogger("root").setLevel(logging.ERROR)  # there ONNX Runtime's tools advise steps that are done already
    wanted = QuantizeRequest(config, max_drop, calibration_images, chosen, fp16, label_field)
    result, refusal = run(wanted, partial(typer.echo, err=as_json))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    if refusal is not None:
        raise QuantizationError(refusal)
    if not as_json:
        typer.echo(
            f"registered {' and '.join(result.chosen)}; the uncertainty of top-1 on {result.images} images is "
            f"{result.uncertainty:.1f} points either way"
        )


def register(models_app: typer.Typer) -> None:
    """Add the command to the `models` commands."""
    models_app.command()(quantize)
