"""Start the endpoint on a local Ray or a cluster, see it ready, keep it, and drain it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.cache import locate
from models.catalog import load_spec
from models.errors import ClusterError, ConfigError
from models.spec import Precision
from pipeline.local_ray import start_local_ray
from serve.access_log import AccessLog
from serve.api_keys import ApiKeys
from serve.config import ServeConfig
from serve.endpoint import Endpoint, Listen
from serve.haproxy import BINARY_VARIABLE, RAY_BINARY_VARIABLE
from serve.ports import check_free, free_ports

logger = logging.getLogger(__name__)

# A replica that finds no room within this is an error that says so.
ROOM_S = 60.0
# Room for a model to be downloaded by a node and loaded.
READY_S = 600.0
POLL_S = 0.2
# Requests up to this are held until they are answered, and sent to another replica where theirs died.
RETRY_BUFFER_BYTES = 512 * 1024

Say = Callable[[str], None]

_set_here: set[str] = set()


def start(config: ServeConfig, listen: Listen, say: Say) -> Endpoint:
    """Start everything; returns when a client is served.

    Raises:
        ConfigError: A port is held, Ray has no room, or a setting cannot be used.
        ClusterError: Ray or Serve do not start.
        ModelError: The model cannot be had or loaded.
    """
    if listen.address is None:
        check_free(listen.host, listen.port, "--port")
        if listen.grpc_port:
            check_free(listen.host, listen.grpc_port, "--grpc-port")
    _check(config)
    folder = Path(tempfile.mkdtemp(prefix="shardlabel-", dir="/tmp" if Path("/tmp").is_dir() else None))
    endpoint = Endpoint(listen, config.deadline_s + 5.0, folder, is_local=listen.address is None)
    _set_environment(listen, folder, config.deadline_s)
    # Ray lets 2 GiB into memory before anybody looks at them. Both ways: 64 MiB are the answers of 10,000 images.
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(max(config.max_request_bytes + 2**20, 2**26)))
    try:
        _start_ray(listen)
        _start_serve(config, listen)
        _wait_until_running(say)
        if listen.address is None:
            _wait_until_answered(listen)
    except BaseException:
        endpoint.close()
        raise
    return endpoint


def _check(config: ServeConfig) -> None:
    """Find before anything is started what replicas would stumble over."""
    spec = load_spec(config.model)
    wanted = None if config.precision == "auto" else Precision(config.precision)
    if wanted is None and len(spec.artifacts) == 1:
        wanted = next(iter(spec.artifacts))
    if wanted is not None:
        spec.artifact(wanted)
        # A download may take minutes, and has its own errors.
        locate(spec, wanted)
    if config.api_keys_file is not None:
        ApiKeys(config.api_keys_file)
    if config.access_log not in ("off", "-"):
        try:
            AccessLog(config.access_log).close()
        except OSError as err:
            raise ConfigError(f"--access-log {config.access_log} cannot be written: {err.strerror}") from err


def _set_environment(listen: Listen, folder: Path, deadline_s: float) -> None:
    """Set what Ray Serve reads when it is imported, here and in the processes that Ray starts."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        # Says that a replica finds no room, which is otherwise only seen by waiting.
        "SERVE_SLOW_STARTUP_WARNING_S": "20",
        "SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "5",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
    }
    launcher = Path(sys.executable).parent / "shardlabel-haproxy"
    if listen.haproxy and listen.address is None and sys.platform == "linux" and launcher.is_file():
        metrics, stats, http, grpc = free_ports(4)
        given = os.environ.get(RAY_BINARY_VARIABLE)
        if given and Path(given).name != launcher.name:
            os.environ[BINARY_VARIABLE] = given
        os.environ[RAY_BINARY_VARIABLE] = str(launcher)
        wanted |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            # A datagram per request to a Python process, for metrics of Ray's that nobody collects here.
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(RETRY_BUFFER_BYTES),
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            # One goes to another replica. Where there is none, some are spent on connections to the dead one that were
            # kept and are not yet known to be closed, before Serve's own proxy is tried.
            "RAY_SERVE_HAPROXY_RETRIES": "5",
            "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
            # Of a replica that does not answer at all: it says itself when a deadline has passed.
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(deadline_s) + 20),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        }
    for name, value in wanted.items():
        # What the user has set stays; what an earlier endpoint of this process has set does not.
        if name not in os.environ or name in _set_here:
            os.environ[name] = value
            _set_here.add(name)


def _start_ray(listen: Listen) -> None:
    import ray

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if listen.address:
            ray.init(address=listen.address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            start_local_ray("ray.serve")
    except Exception as err:  # Ray raises bare ones here
        why = " ".join(str(err).split())[:300]
        if listen.address:
            raise ConfigError(f"cannot join the Ray cluster at {listen.address}: {why}") from err
        raise ClusterError(f"cannot start a local Ray: {why}; run the same command again") from err
    if threading.current_thread() is threading.main_thread():
        # Ray has put handlers of its own in the place of ours: a SIGTERM would end the process on the spot.
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_serve(config: ServeConfig, listen: Listen) -> None:
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    from serve.replica import APP_NAME, build_application, grpc_servicers

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    app = build_application(config, is_fixed=listen.address is None)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        ray_serve.start(
            proxy_location="EveryNode" if listen.address else "HeadOnly",
            http_options=HTTPOptions(host=listen.host, port=listen.port, keep_alive_timeout_s=75),
            grpc_options=gRPCOptions(port=listen.grpc_port, grpc_servicer_functions=grpc_servicers())
            if listen.grpc_port
            else None,
            logging_config=quiet,
        )
        ray_serve.run_many(
            [ray_serve.RunTarget(app, name=APP_NAME, route_prefix="/", logging_config=quiet)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except Exception as err:  # Ray raises bare ones here
        raise ClusterError(f"Ray Serve does not start: {' '.join(str(err).split())[:300]}") from err


def _wait_until_running(say: Say) -> None:
    """Wait until Serve calls the application running.

    Raises:
        ConfigError: No replica found room for ROOM_S.
        ClusterError: The replicas fail, or are not ready for READY_S.
    """
    from ray import serve as ray_serve

    from serve.replica import APP_NAME

    began = time.monotonic()
    said = False
    while True:
        app = ray_serve.status().applications.get(APP_NAME)
        state = "" if app is None else str(app.status.value)
        waited = time.monotonic() - began
        if state == "RUNNING":
            return
        if app is not None and state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(f"the replicas fail: {_reason(app)}")
        if waited > ROOM_S and "to be scheduled" in _reason(app):
            raise ConfigError(f"no replica found room within {ROOM_S:g} s: {_reason(app)}")
        if waited > READY_S:
            raise ClusterError(f"not ready within {READY_S:g} s: {_reason(app)}")
        if waited > 15 and not said:
            said = True
            say("still starting: the model is being loaded, or fetched by its node")
        time.sleep(POLL_S)


def _reason(app: Any) -> str:  # noqa: ANN401 (Serve's status has no public type)
    if app is None:
        return "Serve does not say why"
    texts = [str(app.message), *(str(d.message) for d in app.deployments.values())]
    text = max((t for t in texts if t), key=len, default="Serve does not say why")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The last line of a traceback says what went wrong.
    return (lines[-1] if "Traceback" in text else " ".join(lines))[:400]


def _wait_until_answered(listen: Listen) -> None:
    """Ask as a client would: Serve calls itself running before its proxy passes requests on."""
    deadline = time.monotonic() + ROOM_S
    problem = "nothing answers"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{listen.url}/healthz", timeout=5) as answer:
                if json.load(answer) == {"status": "ok"}:
                    return
        except (OSError, ValueError) as err:
            problem = str(err)
        time.sleep(POLL_S)
    raise ClusterError(f"{listen.url} does not answer: {problem}")


@contextlib.contextmanager
def running(config: ServeConfig, listen: Listen, say: Say) -> Iterator[Endpoint]:
    """Hold an endpoint for the time of a block."""
    endpoint = start(config, listen, say)
    try:
        yield endpoint
    finally:
        endpoint.close()
