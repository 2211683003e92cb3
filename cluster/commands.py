"""`shardlabel cluster render` and `cluster validate`: write manifests from settings, and check manifests."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.errors import ConfigError

EXIT_FAULTS = 2
TARGETS = ("rayjob", "rayservice", "ray-up")


def render(
    target: Annotated[str | None, typer.Argument(metavar="rayjob|rayservice|ray-up", help="What to render.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting. Repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as nested YAML; --set overrides them.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, instead of stdout.")] = None,
    list_settings: Annotated[bool, typer.Option("--list-settings", help="Print every setting and exit.")] = False,
) -> None:
    """Render a manifest from validated settings. The same settings give the same text.

    --list-settings prints every key, its default and its meaning. Lists are a,b; mappings are name=value,name=value.

    Exit codes: 0 done; 2 unknown setting or invalid value.

    Examples:
        shardlabel cluster render rayjob --set job.output=s3://bucket/labels --set gpu.max=8 > rayjob.yaml

        shardlabel cluster render rayservice --set device=cpu --set service.max_replicas=16

        shardlabel cluster render ray-up --config production.yaml --set aws.region=eu-central-1
    """
    from cluster.manifests.settings_sources import build_configuration, nearest
    from cluster.manifests.settings_sources import list_settings as all_settings

    if list_settings:
        for key, default, about in all_settings():
            typer.echo(f"{f'{key}={default}':<72} {about}".rstrip())
        return
    if target not in TARGETS:
        if target is None:
            raise ConfigError(f"say what to render: {', '.join(TARGETS)}")
        raise ConfigError(f"expected {', '.join(TARGETS)}, got {target!r}{nearest(target, TARGETS, or_all=False)}")
    configuration = build_configuration(settings or [], config)

    from cluster.manifests.render import Target
    from cluster.manifests.render import render as render_text

    text = render_text(Target(target), configuration)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"--output {output} cannot be written: {err.strerror}") from err


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Manifests; each may hold several documents.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the faults as JSON.")] = False,
) -> None:
    """Check manifests strictly, without a cluster: one line per fault, with file, line, document, path and reason.

    It reads KubeRay's RayJob, RayService, RayCluster and RayCronJob, files of `ray up`, and Ray Serve's configuration.
    Unknown keys are faults, inside serveConfigV2 and runtimeEnvYAML too. The output names what is not checked: other
    kinds, and what only a cluster knows. Use `kubectl apply --dry-run=server` for these.

    Exit codes: 0 no fault; 2 faults.

    Example:
        shardlabel cluster validate rayjob.yaml rayservice.yaml serve/config.yaml
    """
    from cluster.validate.files import not_checked
    from cluster.validate.files import validate as check

    results = list(check(files))
    faults = [fault for _, _, found in results for fault in found]
    left = {str(file): missing for file, documents, _ in results if (missing := not_checked(documents))}
    if as_json:
        report = {"ok": not faults, "faults": [asdict(fault) for fault in faults], "not_checked": left}
        typer.echo(json.dumps(report))
        raise typer.Exit(EXIT_FAULTS if faults else 0)
    for file, documents, found in results:
        for fault in found:
            typer.echo(str(fault))
        if not found:
            typer.echo(f"{file}: {len(documents)} document{'s' if len(documents) != 1 else ''}, no fault")
    for name, missing in left.items():
        sys.stderr.write(f"{name}: not checked: {'; '.join(missing)}: kubectl apply --dry-run=server -f {name}\n")
    if faults:
        sys.stderr.write(f"{len(faults)} fault{'s' if len(faults) != 1 else ''}\n")
    raise typer.Exit(EXIT_FAULTS if faults else 0)


def register(app: typer.Typer) -> None:
    """Add the group `cluster` to the console command."""
    group = typer.Typer(
        name="cluster",
        help="Render and check manifests for Kubernetes and `ray up`.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(render)
    group.command()(validate)
    app.add_typer(group)
