"""`shardlabel models add` and `models remove`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer

from models.errors import ConfigError


def add(  # noqa: PLR0913 (one argument an option)
    file: Annotated[Path, typer.Argument(help="An ONNX image classifier; its weights may lie in files beside it.")],
    name: Annotated[str, typer.Option(help="Name to register it under.")],
    labels: Annotated[
        str,
        typer.Option(help="A file with one class a line, a JSON list or id2label, or: imagenet (its 1000 classes)."),
    ],
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="imagenet, inception, unit (0 to 1), none (0 to 255), keras-tf, keras-torch, keras-caffe, keras-none; or "
            "a JSON file: timm's config.json, or Hugging Face's preprocessor_config.json. [asked for on a terminal]"
        ),
    ] = None,
    input: Annotated[str | None, typer.Option(help="Input tensor. [default: the only one]")] = None,
    output: Annotated[str | None, typer.Option(help="Output tensor. [default: the only one]")] = None,
    layout: Annotated[str | None, typer.Option(help="NCHW or NHWC. [default: from the input's shape]")] = None,
    kind: Annotated[str | None, typer.Option(help="logits or probabilities. [default: from a trial run]")] = None,
    embedding: Annotated[str | None, typer.Option(help="Tensor of penultimate features, for --embeddings.")] = None,
    resize: Annotated[int | None, typer.Option(help="Shorter side after the resize, pixels.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the centre crop. [default: what the model takes]")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic or lanczos.")] = None,
    description: Annotated[str | None, typer.Option(help="A sentence for `models list`.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "unknown",
    replace_old: Annotated[bool, typer.Option("--replace", help="Replace a model of this name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entry as JSON.")] = False,
) -> None:
    """Register an ONNX image classifier under a name that `label`, `evaluate` and `serve` accept.

    Names, layout, shape and types are read from the file. A trial run in a child process on the bundled photographs
    tells logits from probabilities, and whether the batch axis is dynamic. The file is copied into the cache.

    Examples:
        shardlabel models add resnet50.onnx --name my-resnet --labels imagenet --preprocess imagenet

        shardlabel models add vit/model.onnx --name vit --labels vit/config.json --preprocess vit/preprocessor_config.json
    """
    from models.register.preprocessing import load_recipe
    from models.register.register import Registration, register_model

    _one_of("layout", layout, ("NCHW", "NHWC"))
    _one_of("kind", kind, ("logits", "probabilities"))
    recipe = load_recipe(preprocess or _asked(), interpolation)
    recipe = replace(recipe, crop=crop or recipe.crop, resize_shorter=resize or recipe.resize_shorter)
    wanted = Registration(
        path=file, name=name, labels=labels, recipe=recipe, input=input, output=output, layout=layout, kind=kind,
        embedding=embedding, description=description, licence=licence, replace=replace_old,
    )  # fmt: skip
    spec, remarks = register_model(wanted)
    ((precision, artifact),) = spec.artifacts.items()
    if as_json:
        typer.echo(orjson.dumps(spec.model_dump(mode="json", exclude={"folder"})))
        return
    batch = "any number of images" if spec.input.batch is None else f"{spec.input.batch} at a time"
    p = spec.preprocessing
    typer.echo(f"{spec.name}: {precision}, {artifact.size_bytes / 1e6:.1f} MB, registered from {file}")
    typer.echo(f"  input  {spec.input.name}: {spec.input.dtype}, {spec.input.layout}, {spec.input.channels}, {batch}")
    typer.echo(f"  output {spec.output.name}: {spec.output.kind}")
    typer.echo(f"  pixels resize {p.resize_shorter} ({p.fit}, {p.interpolation}), crop {p.crop}; (x * {p.scale:.6g} - "
               f"{list(p.mean)}) / {list(p.std)}")  # fmt: skip
    for remark in remarks:
        typer.echo(f"  note: {remark}")
    typer.echo(f"try it: shardlabel label IMAGES --output labels --model {spec.name}")


def remove(name: Annotated[str, typer.Argument(help="The registered name.")]) -> None:
    """Remove a model registered by `models add`, or the artifacts that `models quantize` added to a model."""
    from models.register.register import remove_model

    for path in remove_model(name):
        typer.echo(f"removed {path}")


def _asked() -> str:
    """Prompt for the preprocessing; without a terminal that is an error."""
    from models.register.preprocessing import NAMED

    names = ", ".join(NAMED)
    if not sys.stdin.isatty():
        raise ConfigError(f"--preprocess is missing: give the model's preprocessing, one of {names}, or a JSON file")
    return str(typer.prompt(f"Preprocessing of the model ({names}, or a JSON file)", default="imagenet"))


def _one_of(option: str, value: str | None, kinds: tuple[str, ...]) -> None:
    if value is not None and value not in kinds:
        raise ConfigError(f"--{option} must be one of {', '.join(kinds)}, got {value!r}")
