"""`shardlabel models list|info|pull|verify`; `add` and `remove` are in `models.register.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from models.catalog import load_all, load_labels, load_spec
from models.errors import ArtifactError, UnknownModelError
from models.register.cli import add, remove
from models.spec import ModelSpec, Precision

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A name of `shardlabel models list`, or an .onnx file.")]


def list_models(as_json: AsJson = False) -> None:
    """List every model in the catalog: precisions, size, cached or not, reported accuracy."""
    from models.store.locate import is_cached

    rows: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "description": spec.description,
            "licence": spec.licence,
            "precisions": [
                {
                    "precision": p.value,
                    "size_bytes": a.size_bytes,
                    "bundled": a.bundled,
                    "cached": is_cached(spec, p),
                    **_reported(spec, p),
                }
                for p, a in spec.artifacts.items()
            ],
            **_reported(spec, next(iter(spec.artifacts))),
        }
        for spec in load_all()
    ]
    if as_json:
        typer.echo(orjson.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "precision", "MB", "here", "top-1 %", "top-5 %", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right" if column.header in ("MB", "top-1 %", "top-5 %") else "left"
    for row in rows:
        for index, file in enumerate(row["precisions"]):
            here = "bundled" if file["bundled"] else "yes" if file["cached"] else "no"
            table.add_row(
                row["name"] if index == 0 else "", file["precision"], f"{file['size_bytes'] / 1e6:.1f}", here,
                _percent(file["reported_top1"]), _percent(file["reported_top5"]),
            )  # fmt: skip
    Console().print(table)


def info(name: Name, as_json: AsJson = False) -> None:
    """Show a model's whole entry, and its inputs and outputs as ONNX Runtime reports them."""
    from models.store.locate import is_cached

    spec = load_spec(name)
    entry: dict[str, Any] = spec.model_dump(mode="json", exclude={"folder"})
    entry["classes"] = len(load_labels(spec))
    for precision in spec.artifacts:
        cached = is_cached(spec, precision)
        entry["artifacts"][precision.value]["cached"] = cached
        entry["artifacts"][precision.value]["onnxruntime"] = _signature(spec, precision) if cached else None
    if as_json:
        typer.echo(orjson.dumps(entry))
        return
    import yaml

    typer.echo(yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=110).rstrip())


def pull(
    name: Name,
    source: Annotated[Path | None, typer.Option("--from", help="Import this file instead of downloading.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, int8 or fp16. [default: all that are available]")] = None,
) -> None:
    """Download a model's files, or import one from disk; size and SHA-256 are checked."""
    from models.store.download import import_file, progress_printer
    from models.store.locate import is_cached, locate

    spec = load_spec(name)
    wanted = [_precision(spec, precision)] if precision else list(spec.artifacts)
    if source is not None:
        if precision is None:
            wanted = _of_size(spec, source)
        path = import_file(spec, wanted[0], source)
        typer.echo(f"{spec.name} {wanted[0]}: imported to {path}")
        return
    for each in wanted:
        artifact = spec.artifact(each)
        if is_cached(spec, each):
            typer.echo(f"{spec.name} {each}: already here, {locate(spec, each)}")
        elif artifact.built_by is not None and precision is None:
            typer.echo(f"{spec.name} {each}: not downloaded; build it with {artifact.build_step}")
        elif artifact.built_by is not None:
            locate(spec, each)
        else:
            with progress_printer(artifact.file) as progress:
                path = locate(spec, each, progress=progress)
            typer.echo(f"{spec.name} {each}: downloaded to {path}")


def verify(
    name: Name,
    fetch: Annotated[bool, typer.Option("--pull", help="First download the files that are missing.")] = False,
) -> None:
    """Check a model's cached files: SHA-256, inputs and outputs, and the zoo's test vector where the catalog has one.

    Exits with 1 if a check fails or no file is cached.
    """
    from models.register.test_vector import check_test_vector
    from models.store.files import verify_file
    from models.store.locate import is_cached, locate

    if fetch:
        pull(name, source=None, precision=None)
    spec = load_spec(name)
    checked = 0
    for precision, artifact in spec.artifacts.items():
        if not is_cached(spec, precision):
            typer.echo(f"{spec.name} {precision}: not cached, not checked")
            continue
        path = locate(spec, precision, download=False)
        verify_file(path, artifact)
        typer.echo(f"{spec.name} {precision}: SHA-256 {artifact.sha256} matches")
        signature = _signature(spec, precision)
        typer.echo(f"{spec.name} {precision}: ONNX Runtime loads it: {signature['inputs']} -> {signature['outputs']}")
        vector = check_test_vector(spec, precision, path)
        if vector is not None:
            typer.echo(f"{spec.name} {precision}: {vector}")
        checked += 1
    if not checked:
        raise ArtifactError(
            f"{spec.name}: none of its files is cached, so nothing was checked; run `shardlabel models verify {name} "
            f"--pull` to download and check it, or without a network `shardlabel models pull {name} --from FILE`"
        )


def _signature(spec: ModelSpec, precision: Precision) -> dict[str, list[str]]:
    from models.sandbox.sandbox import read_signature
    from models.store.locate import locate

    return read_signature(locate(spec, precision, download=False))


def _precision(spec: ModelSpec, value: str) -> Precision:
    if value not in list(Precision):
        raise UnknownModelError(f"--precision must be one of {', '.join(Precision)}, got {value!r}")
    spec.artifact(Precision(value))
    return Precision(value)


def _of_size(spec: ModelSpec, source: Path) -> list[Precision]:
    """Guess from its size which of a model's files this is; the import then checks the SHA-256."""
    size = source.stat().st_size if source.is_file() else -1
    same = [p for p, a in spec.artifacts.items() if a.size_bytes == size]
    downloadable = [p for p, a in spec.artifacts.items() if not a.bundled]
    return same or downloadable or list(spec.artifacts)


def _reported(spec: ModelSpec, precision: Precision) -> dict[str, float | None]:
    pair = next(iter(spec.reported_for(precision)), None)
    return {"reported_top1": pair.top1 if pair else None, "reported_top5": pair.top5 if pair else None}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def register(root: typer.Typer) -> typer.Typer:
    """Add the `models` commands to the console command; returns their app, so that other folders can add to it."""
    app = typer.Typer(no_args_is_help=True, help="List models; download, add, remove and check their files.")
    app.command("list")(list_models)
    for command in (info, pull, add, remove, verify):
        app.command()(command)
    root.add_typer(app, name="models")
    return app
