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

EXIT_FAILED = 1


def serve(  # noqa: PLR0913 (one argument an option)
    model: Annotated[
        str | None, typer.Option(help="A name of `shardlabel models list`, or an .onnx file. [default: resnet18-v2]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, int8 or fp16. [default: auto]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or tensorrt. [default: auto]")] = None,
    decode: Annotated[
        str | None, typer.Option(help="fast, or exact: the reference preprocessing pixel for pixel. [default: fast]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC; 0 for none.")] = 9000,
    min_replicas: Annotated[
        int | None, typer.Option(help="Replicas that are always there; 0: none without requests. [default: 1]")
    ] = None,
    max_replicas: Annotated[int | None, typer.Option(help="Most replicas under load. [default: as fit]")] = None,
    replica_cpus: Annotated[
        int | None, typer.Option(help="CPUs, and threads, of one replica. [default: 1; with a GPU up to 8]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Most images of one inference. [default: 8 on a CPU, 32 on a GPU]")
    ] = None,
    max_batch_delay_ms: Annotated[
        float | None, typer.Option(help="How long a free model waits for more images. [default: 0]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Labels per image where a request does not say. [default: 5]")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Images that may wait in a replica; beyond, 503. [default: 128 or more]")
    ] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Time for one request; then 504. [default: 10]")] = None,
    max_request_bytes: Annotated[
        int | None, typer.Option(help="Of a request's body; beyond, 413. [default: 20971520]")
    ] = None,
    max_body_memory: Annotated[
        int | None, typer.Option(help="Of all bodies that a replica holds; beyond, 503. [default: 268435456]")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Of an image; beyond, 413. [default: 100000000]")] = None,
    max_images: Annotated[int | None, typer.Option(help="Images of one request; beyond, 413. [default: 64]")] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="Ask for one of its bearer keys, one a line. [default: everyone is served]")
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(help="A file for one JSON line per request, or off. [default: off]")
    ] = None,
    haproxy: Annotated[bool, typer.Option(help="HAProxy before the replicas, where it can be.")] = True,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join. [default: $RAY_ADDRESS, else a local Ray]")
    ] = None,
) -> None:
    """Answer images over HTTP and gRPC, with the labels that `shardlabel label` gives.

    Runs until Ctrl-C or SIGTERM, then finishes the requests it has. Exit codes: 0 stopped; 1 failed; 2 bad usage or
    configuration, or a port that is in use.

    Examples:
        shardlabel serve --model efficientnet-lite0

        curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' 127.0.0.1:8000/v1/classify

        shardlabel serve --model efficientnet-lite0 --host 0.0.0.0 --api-keys-file keys.txt --min-replicas 0
    """
    options: dict[str, Any] = dict(locals())
    for name in ("host", "port", "grpc_port", "haproxy", "address"):
        options.pop(name)

    from serve.config import build_config
    from serve.local.launch import running
    from serve.local.running import Listen

    if access_log == "-":
        raise ConfigError("--access-log must be off or a file: replicas have no terminal of their own")
    if access_log not in (None, "off"):
        options["access_log"] = str(Path(str(access_log)).absolute())
    if api_keys_file is not None:
        options["api_keys_file"] = api_keys_file.absolute()
    config = build_config(options)
    listen = Listen(host, port, grpc_port, address or os.environ.get("RAY_ADDRESS") or None, haproxy)

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopper(stop))
    _say(f"starting {config.model} ...")
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
