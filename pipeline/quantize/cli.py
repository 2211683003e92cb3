"""`shardlabel models quantize`: it stands here, and not with the other commands on models, since it reads SOURCE."""

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
    name: Annotated[str, typer.Argument(help="A model of the catalog, or one that was added, that has fp32.")],
    calibration: Annotated[
        list[str], typer.Option(metavar="SRC", help="Labelled images, as for `evaluate`; may be given several times.")
    ],
    max_drop: Annotated[float, typer.Option(help="Points of top-1 that may be lost on the images held out.")] = 0.5,
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many images set the ranges of the activations; the others are held out to measure accuracy.",
        ),
    ] = 128,
    limit: Annotated[int, typer.Option(min=1, help="Images to read at most; 150 kB of memory each.")] = 2000,
    methods: Annotated[str, typer.Option(help="Variants of setting the ranges, of which the best is kept.")] = ",".join(
        METHODS
    ),
    fp16: Annotated[bool, typer.Option(help="Also measure float16, as it is made for GPUs.")] = True,
    label_field: Annotated[str | None, typer.Option(help="As for `evaluate`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
    **options: object,
) -> None:
    """Make an int8 of a model, measured on images of your own beside fp32 and fp16; register it if it loses little enough.

    Static int8: QDQ, per channel, uint8 activations, int8 weights at scales that are right on every CPU. Some images of
    SRC set the ranges; the others are held out. When top-1 falls there by more than --max-drop, nothing is registered,
    and the exit code is 1. Afterwards --precision int8 (and auto, on a CPU) finds it; `models remove` undoes it.

    Example:
        shardlabel models quantize resnet18-v2 --calibration 'val/*.tar'
    """
    from pipeline.quantize.quantize import QuantizeRequest
    from pipeline.quantize.quantize import quantize as run

    chosen = tuple(one.strip() for one in methods.split(",") if one.strip())
    if not chosen or set(chosen) - set(METHODS):
        raise ConfigError(f"--methods must be some of {', '.join(METHODS)}, got {methods!r}")
    config = build_config({**options, "source": calibration, "output": "none", "model": name, "limit": limit})
    logging.getLogger("root").setLevel(logging.ERROR)  # ONNX Runtime's tools advise there, on what is done already
    wanted = QuantizeRequest(config, max_drop, calibration_images, chosen, fp16, label_field)
    result, refusal = run(wanted, partial(typer.echo, err=as_json))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    if refusal is not None:
        raise QuantizationError(refusal)
    if not as_json:
        typer.echo(
            f"registered {' and '.join(result.chosen)}; on {result.images} images top-1 is known to "
            f"{result.uncertainty:.1f} points either way"
        )


def register(models_app: typer.Typer) -> None:
    """Add the command to those on models."""
    models_app.command()(quantize)
