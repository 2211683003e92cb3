"""Start a local Ray for one command, without the services that only a cluster or a person at a dashboard needs.

`ray.init` starts five Python processes beside Ray's own two: the autoscaler's monitor, the log monitor, an API server
whose coming up it waits for (even with `include_dashboard=False`), and the two agents of a node, for its dashboard and for
runtime environments. For one command on one machine none of them does anything, and they take 3 s at the start, 1 s at
the end, and CPU in between (docs/decisions.md).

Who reaches a Ray runs code as whoever started it. So each has a token of its own, which only the environment of its
processes holds (Ray's own is in a file that lasts, and that others can read where they can read the home folder), and
lies in a folder that is closed to others (Ray's own are open to all for writing).
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Ray lets a driver in when workers that it started in advance are there, and waits for ever where one of them dies first.
# And nobody looks at the events of a local Ray's tasks.
_SYSTEM_CONFIG = {"prestart_worker_first_driver": False, "task_events_report_interval_ms": 0}
# Of a start that takes 2 s; a machine that is busy with ten others has been seen to take 20.
START_TIMEOUT_S = 120.0
_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
# Whatever options the raylet adds: `cat` would refuse them, and the raylet ends with its agents.
_STAND_IN = 'sh -c "exec cat" agent'
_AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
# Files in which the agents say where they listen; the raylet waits for them.
_AGENT_PORTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
# By which somebody may ask for a runtime environment, which only its agent makes.
_RUNTIME_ENV_VARIABLES = ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
# The name of a Unix socket has at most 103 bytes (107 on Linux), of which Ray's folders below ours take 66.
_LONGEST_FOLDER = 37

# What has to be undone once this process's local Ray has ended.
_undo = ExitStack()


def start_local_ray(library: str = "ray.data", **options: Any) -> None:  # noqa: ANN401 (ray.init's own)
    """Start a Ray of this command's own, whatever others run on this machine; `stop_ray` ends it.

    Args:
        library: Ray's library that is needed next, imported meanwhile.
        options: For `ray.init`, which raises what it raises.
    """
    # Ray's processes take a second and a half to come up, in which this one has nothing else to do.
    warm_up = threading.Thread(target=import_module, args=(library,), name=f"import-{library}", daemon=True)
    warm_up.start()
    watchdog = threading.Timer(START_TIMEOUT_S, _give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        _start(options)
    except BaseException:
        stop_ray()
        raise
    finally:
        watchdog.cancel()
    warm_up.join()


def stop_ray() -> None:
    """Leave Ray; a local one ends, and nothing of it stays on disk or in the environment."""
    import ray

    ray.shutdown()
    _undo.close()


def _start(options: dict[str, Any]) -> None:
    import ray

    atexit.register(stop_ray)
    _undo.enter_context(_own_token())
    folder = _undo.enter_context(_own_folder())
    with _on_loopback(), _without_services(), _without_agents():
        ray.init(
            address="local",
            _temp_dir=folder,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _system_config=_SYSTEM_CONFIG,
            **options,
        )
        _name_no_dashboard()
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise RuntimeError("it would listen on every interface of this machine, and not on loopback alone")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray call its node 127.0.0.1, as it does on macOS and Windows: all of its processes listen there alone then."""
    from ray._private import ray_constants

    # The constant is this process's, which may have read the variable long ago; the variable is for those it starts.
    variable, of_user = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        if of_user is None:
            del os.environ[variable]
        else:
            os.environ[variable] = of_user


@contextmanager
def _own_token() -> Iterator[None]:
    """Have Ray take a new token from the environment, and afterwards whatever there was before."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    before = {name: os.environ.pop(name) for name in _AUTH_VARIABLES if name in os.environ}
    # The mode is Ray's own default for a Ray that it starts; "disabled" is meant for other clusters.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name in _AUTH_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")


@contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder that is closed to others, where Ray would make its own, and remove it in the end."""
    from ray._common.utils import get_default_system_temp_dir

    folder = tempfile.mkdtemp(prefix="ray-", dir=get_default_system_temp_dir())
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        # Not the folder itself: Ray opens to all what it is given.
        yield f"{folder}/r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_up() -> None:
    """End this process: Ray waits for ever for some of its own that died while it came up."""
    sys.stderr.write(
        f"shardlabel: error: Ray did not come up within {START_TIMEOUT_S:g} s; run the same command again\n"
    )
    sys.stderr.flush()
    os._exit(1)


def _name_no_dashboard() -> None:
    """Tell Ray's agent an address where nothing answers: without any it looks every second, and logs a traceback."""
    from ray._private import ray_constants
    from ray.experimental import internal_kv

    namespace = ray_constants.KV_NAMESPACE_DASHBOARD
    internal_kv._internal_kv_put(ray_constants.DASHBOARD_ADDRESS, b"127.0.0.1:1", namespace=namespace)


@contextmanager
def _without_services() -> Iterator[None]:
    """Have Ray's head node start no service, and its agent take any port; Ray has no options for that (2.60).

    Where a later Ray has other names for them, they start as ever, and a start only takes longer.
    """
    from ray._private.node import Node

    kept = {name: vars(Node)[name] for name in (*_SERVICES, "start_raylet") if name in vars(Node)}

    def start_raylet(node: Any, *args: Any) -> None:  # noqa: ANN401 (Ray's own)
        # The agent's port is the same for every Ray of a machine: beside another Ray, 3.4 s of vain tries.
        node._ray_params.dashboard_agent_listen_port = 0
        kept["start_raylet"](node, *args)

    for name in kept:
        setattr(Node, name, start_raylet if name == "start_raylet" else _no_service)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


@contextmanager
def _without_agents() -> Iterator[None]:
    """Have the raylet start `cat` where it would start its node's two agents: it ends when the raylet does, as they do.

    The raylet insists on a command, keeps a pipe to it, and waits to be told ports; at those given here nobody listens.
    Where Ray has other names for all this, or a runtime environment may be wanted, the agents start as ever.
    """
    from ray._private import ray_constants, services

    wanted = any(name in os.environ for name in _RUNTIME_ENV_VARIABLES)
    if not (shutil.which("sh") and shutil.which("cat")) or wanted or not hasattr(services, "start_ray_process"):
        yield
        return
    start_ray_process = services.start_ray_process
    # `uv run` would have the workers in an environment that an agent builds. They have this process's own.
    uv, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV, False

    def start(command: list[str], *args: Any, **options: Any) -> Any:  # noqa: ANN401 (Ray's own)
        options_of = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
        session, node = options_of.get("--session_dir"), options_of.get("--node_id")
        if session and node and all(any(part.startswith(agent) for part in command) for agent in _AGENTS):
            for name in _AGENT_PORTS:
                Path(session, f"{name}_{node}").write_text("1")
            command = [
                next((agent + _STAND_IN for agent in _AGENTS if part.startswith(agent)), part) for part in command
            ]
        return start_ray_process(command, *args, **options)

    services.start_ray_process = start
    try:
        yield
    finally:
        services.start_ray_process = start_ray_process
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = uv


def _no_service(node: object, **options: object) -> None:
    """Stand for a service that is not started."""
    logger.debug("a service of %s is left out", type(node).__name__)
