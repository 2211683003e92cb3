"""`shardlabel serve`: options in, an endpoint until it is told to stop, an exit code out."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from models.errors import ShardlabelError
from pipeline.options import build_settings, options_of
from serve.config import ServeOptions


@options_of(ServeOptions)
def serve(
    config: Annotated[
        Path | None, typer.Option(help="File of these options as YAML; the command line wins.", rich_help_panel="Run")
    ] = None,
    **options: object,
) -> None:
    """Answer images over HTTP and gRPC, with the labels that `shardlabel label` gives.

    Runs until Ctrl-C or SIGTERM, then finishes the requests it has. Exit codes: 0 stopped; 1 failed; 2 bad usage or
    configuration, or a port that is in use.

    Examples:
        shardlabel serve --model efficientnet-lite0

        curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' 127.0.0.1:8000/v1/classify

        shardlabel serve --model efficientnet-lite0 --host 0.0.0.0 --api-keys-file keys.txt --min-replicas 0

        shardlabel serve --model efficientnet-lite0 --tls-cert cert.pem --tls-key key.pem

        shardlabel serve --config serve.yaml

        shardlabel serve --model efficientnet-lite0 --calibration calibration.json

        shardlabel serve --model efficientnet-lite0 --model resnet18-v2 --model-control explicit
    """
    from serve.local.launch import running

    settings = build_settings(ServeOptions, options, config)
    stop = threading.Event()

    def stop_or_break_off(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_or_break_off)
    _say(f"starting {', '.join(settings.model)} ...")
    with running(settings, _say) as endpoint:
        _say(endpoint.sentence())
        while not stop.wait(1.0):
            if (fault := endpoint.fault()) is not None:
                _say(f"error: {fault}")
                raise typer.Exit(1)
            try:
                if endpoint.renew_certificate():
                    _say("the certificate was renewed: new connections get it")
            except (ShardlabelError, OSError) as err:
                _say(f"warning: the old certificate stays: {err}")
        _say("stopping once the requests in progress are answered")
    _say("stopped")


def _say(text: str) -> None:
    typer.echo(f"shardlabel: {text}", err=True)


def register(app: typer.Typer) -> None:
    """Add this folder's command to the console command."""
    app.command()(serve)
