"""`shardlabel serve`: options in, an endpoint until it is told to stop, an exit code out."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from models.errors import ConfigError
from pipeline.config import LabelConfig
from pipeline.options import build_settings, options_of
from serve.config import ServeConfig

EXIT_FAILED = 1


@options_of(ServeConfig)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC; 0 for none.")] = 9000,
    haproxy: Annotated[bool, typer.Option(help="HAProxy before the replicas, where it can be.")] = True,
    address: Annotated[str | None, typer.Option(help=LabelConfig.model_fields["address"].description)] = None,
    **options: Any,  # noqa: ANN401 (by field)
) -> None:
    """Answer images over HTTP and gRPC, with the labels that `shardlabel label` gives.

    Runs until Ctrl-C or SIGTERM, then finishes the requests it has. Exit codes: 0 stopped; 1 failed; 2 bad usage or
    configuration, or a port that is in use.

    Examples:
        shardlabel serve --model efficientnet-lite0

        curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' 127.0.0.1:8000/v1/classify

        shardlabel serve --model efficientnet-lite0 --host 0.0.0.0 --api-keys-file keys.txt --min-replicas 0

        shardlabel serve --model efficientnet-lite0 --calibration calibration.json

        shardlabel serve --model efficientnet-lite0 --model resnet18-v2 --model-control explicit
    """
    from serve.local.launch import running
    from serve.local.running import Listen

    if options["access_log"] == "-":
        raise ConfigError("--access-log must be off or a file: replicas have no terminal of their own")
    if options["access_log"] not in (None, "off"):
        options["access_log"] = str(Path(options["access_log"]).absolute())
    if options["api_keys_file"] is not None:
        options["api_keys_file"] = options["api_keys_file"].absolute()
    config = build_settings(ServeConfig, options)
    listen = Listen(host, port, grpc_port, address or os.environ.get("RAY_ADDRESS") or None, haproxy)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopper(stop))
    _say(f"starting {', '.join(config.model)} ...")
    with running(config, listen, _say) as endpoint:
        _say(endpoint.sentence())
        while not stop.wait(1.0):
            fault = endpoint.fault()
            if fault is not None:
                _say(f"error: {fault}")
                raise typer.Exit(EXIT_FAILED)
        _say("stopping: finishing the requests there are")
    _say("stopped")


def _stopper(stop: threading.Event) -> Any:  # noqa: ANN401 (signal's own type)
    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    return handle


def _say(text: str) -> None:
    sys.stderr.write(f"shardlabel: {text}\n")
    sys.stderr.flush()


def register(app: typer.Typer) -> None:
    """Add this folder's command to the console command."""
    app.command()(serve)
