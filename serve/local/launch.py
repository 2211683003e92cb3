"""Start the endpoint on a local Ray or a cluster, and see it ready."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from models.catalog import load_spec
from models.errors import ClusterError, ConfigError
from models.spec import Precision
from models.store.locate import locate
from pipeline.operators.model_ref import read_calibration
from pipeline.patches.grpc_patches import check_grpc
from pipeline.patches.looks_patches import most_resources, serve_options
from pipeline.session.connect import check_address, join_or_start
from serve import environment, tracing
from serve.config import APP_NAME, ServeOptions
from serve.http.access_log import AccessLog
from serve.http.keys import ApiKeys
from serve.local.haproxy import RAY_BINARY_VARIABLE, REFUSED, TLS_CERT_VARIABLE, TLS_KEY_VARIABLE
from serve.local.ports import check_free
from serve.local.running import Endpoint
from serve.local.tls import checked

ROOM_S = 60.0  # a replica that finds no room within this is an error that says so
READY_S = 600.0  # room for a model to be downloaded by a node and loaded
POLL_S = 0.2

Say = Callable[[str], None]

_set_here: set[str] = set()


@contextlib.contextmanager
def running(options: ServeOptions, say: Say) -> Iterator[Endpoint]:
    """Hold an endpoint for the time of a block, which begins when a client is served.

    Raises:
        ConfigError: A port is held, Ray has no room, or a setting cannot be used.
        ClusterError: Ray or Serve do not start.
        ModelError: The model cannot be had or loaded.
    """
    for port, option in ((options.port, "--port"), (options.grpc_port, "--grpc-port")):
        if port and options.address is None:
            check_free(options.host, port, option)
    _check(options)
    if no_spans := tracing.problem():
        say(f"warning: {no_spans}")
    # A short name: the path of a socket below it may have 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="shardlabel-", dir="/tmp", ignore_cleanup_errors=True) as name,
        contextlib.closing(Endpoint(options, Path(name))) as endpoint,
    ):
        haproxy = _set_environment(options, endpoint.folder)
        _start_ray(options.address)
        if options.address:
            options = endpoint.options = _as_it_listens(options, say)
        # Behind HAProxy nobody else may ask.
        _start_serve(options, "127.0.0.1" if haproxy else options.host, endpoint.folder)
        _wait_until_ready(options, endpoint.folder, say)
        yield endpoint


def _check(options: ServeOptions) -> None:
    """Find before anything is started what replicas would stumble over."""
    for spec in map(load_spec, options.model):
        wanted = list(spec.artifacts) if options.precision == "auto" else [Precision(options.precision)]
        if len(wanted) == 1:
            # A download may take minutes, and has its own errors.
            locate(spec, wanted[0])
    if options.calibration is not None:
        read_calibration(options.calibration)
    if options.api_keys_file is not None:
        ApiKeys(options.api_keys_file)
    if options.tls_cert and options.tls_key:
        checked(options.tls_cert, options.tls_key)
    if options.access_log not in ("off", "-"):
        try:
            AccessLog(options.access_log).close()
        except OSError as err:
            raise ConfigError(f"--access-log {options.access_log} cannot be written: {err.strerror}") from err


def _set_environment(options: ServeOptions, folder: Path) -> bool:
    """Set what Ray Serve's processes read when they start; tell whether HAProxy is to stand before the replicas."""
    # Bytecode is kept. Who checked the certificate was given it as an option.
    for name in ("PYTHONDONTWRITEBYTECODE", TLS_CERT_VARIABLE, TLS_KEY_VARIABLE):
        os.environ.pop(name, None)
    launcher = Path(sys.executable).parent / "shardlabel-haproxy"
    haproxy = options.haproxy and options.address is None and sys.platform == "linux" and launcher.is_file()
    wanted = environment.of_every_node(options) | environment.of_this_machine(options, folder if haproxy else None)
    if haproxy:
        os.environ.pop(RAY_BINARY_VARIABLE, None)
        wanted |= environment.of_haproxy(options, str(launcher))
    elif options.tls_cert:
        raise ConfigError("--tls-cert needs HAProxy, which is there on Linux only: put a gateway that has TLS in front")
    for name, value in wanted.items():
        # What the user has set stays; what an earlier endpoint of this process has set does not.
        if name not in os.environ or name in _set_here:
            os.environ[name] = value
            _set_here.add(name)
    return haproxy


def _start_ray(address: str | None) -> None:
    check_address(address)
    handler = signal.getsignal(signal.SIGTERM)
    join_or_start(address, "ray.serve")
    if threading.current_thread() is threading.main_thread():
        # Ray has put a handler of its own in the place of ours: a SIGTERM would end the process on the spot.
        signal.signal(signal.SIGTERM, handler)


def _start_serve(options: ServeOptions, host: str, folder: Path) -> None:
    from ray import serve as ray_serve

    from serve.replica import build_application

    check_grpc()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    app = build_application(options, is_fixed=options.address is None)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        ray_serve.start(
            proxy_location="EveryNode" if options.address else "HeadOnly",
            http_options={"host": host, "port": options.port, "keep_alive_timeout_s": 75},
            # There is none on port 0.
            grpc_options={"port": options.grpc_port, "grpc_servicer_functions": [environment.GRPC_SERVICER]},
            logging_config=quiet,
        )
        ray_serve.run_many(
            [ray_serve.RunTarget(app, name=APP_NAME, route_prefix="/", logging_config=quiet)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except Exception as err:  # Ray raises bare ones here
        _look_for_refusal(folder)
        raise ClusterError(f"Ray Serve does not start: {_in_a_line(str(err))}") from err


def _as_it_listens(options: ServeOptions, say: Say) -> ServeOptions:
    """Return where the cluster's Serve listens if it runs already: it cannot be told otherwise. Says what has no effect."""
    found = serve_options()
    if found is None:
        return options
    http, grpc = found
    real = options.model_copy(update={"host": http.host, "port": http.port, "grpc_port": grpc.port})
    if real != options:
        say(
            f"Serve runs on that cluster already, and listens on {real.host}:{real.port}, gRPC on port {real.grpc_port}: "
            f"--host {options.host} --port {options.port} --grpc-port {options.grpc_port} have no effect"
        )
    return real


def _look_for_refusal(folder: Path) -> None:
    """Raise ClusterError if `serve.local.haproxy` has refused to start: Serve would try again without end."""
    for path in folder.rglob(REFUSED):
        raise ClusterError(path.read_text())


def _wait_until_ready(options: ServeOptions, folder: Path, say: Say) -> None:
    """Wait until Serve calls the application running, and a local one answers."""
    from ray import serve as ray_serve

    began = time.monotonic()
    say_once = cache(say)
    while True:
        _look_for_refusal(folder)
        app = ray_serve.status().applications.get(APP_NAME)
        state = "" if app is None else str(app.status.value)
        reason = _reason(app)
        if state == "RUNNING":
            reason = "" if options.address else _silence(options)
            if not reason:
                return
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(f"the replicas fail: {reason}")
        waited = time.monotonic() - began
        if waited > ROOM_S and "to be scheduled" in reason:
            if options.address is None or not _can_grow():
                raise ConfigError(f"no replica found room within {ROOM_S:g} s: {reason}")
            say_once("no replica has room yet: waiting for the cluster's autoscaler to add a node")
        if waited > READY_S:
            raise ClusterError(f"not ready within {READY_S:g} s: {reason}")
        if waited > 15:
            say_once("still starting: the model is being loaded, or fetched by its node")
        time.sleep(POLL_S)


def _can_grow() -> bool:
    """Tell whether the cluster's autoscaler may add CPUs or GPUs."""
    import ray

    most, now = most_resources(), ray.cluster_resources()
    return any(most.get(kind, 0) > now.get(kind, 0) for kind in ("CPU", "GPU"))


def _reason(app: Any) -> str:  # noqa: ANN401 (Serve's status has no public type)
    texts = [] if app is None else [str(app.message), *(str(d.message) for d in app.deployments.values())]
    return _in_a_line(max(texts, key=len, default="") or "Serve does not say why")


def _in_a_line(text: str) -> str:
    """Return what Ray says; of a traceback the last line, which says what went wrong."""
    return " ".join((text.strip().splitlines()[-1] if '  File "' in text else text).split())[:400]


def _silence(options: ServeOptions) -> str:
    """Ask as a client would, and say what is wrong: Serve calls itself running before its proxy passes requests on."""
    # The certificate was looked at, and bears another name than this machine's.
    trusting = ssl._create_unverified_context() if options.tls_cert else None
    # No proxy of the environment's stands between a machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))
    try:
        with opener.open(f"{options.url}/healthz", timeout=5) as answer:
            if orjson.loads(answer.read()) == {"status": "ok"}:
                return ""
            problem = "another server answers there"
    except (OSError, ValueError) as err:
        problem = str(err)
    return f"{options.url} does not answer: {problem}"
