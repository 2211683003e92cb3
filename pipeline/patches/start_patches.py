"""A local Ray without the services that only a cluster or a person at a dashboard needs, and closed to others.

`ray.init` starts five Python processes beside Ray's own two: the autoscaler's monitor, the log monitor, an API server
that it waits for (even with `include_dashboard=False`), and the two agents of a node, for its dashboard and for runtime
environments. For one command on one machine none of them does anything.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.patches.patches import (
    AGENTS,
    API_SERVER,
    COMMAND_LINE,
    LOOPBACK,
    MONITORS,
    SHORT_ERRORS,
    TOKEN,
    WORKING_DIRECTORY,
)

logger = logging.getLogger(__name__)

# `sh` accepts any options that the raylet adds, `cat` would refuse them; the raylet ends with its agents.
_STAND_IN = 'sh -c "exec cat" agent'
_AGENT_COMMANDS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
# Files in which the agents write their ports; the raylet waits for them.
_AGENT_PORTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
# With these a user may request a runtime environment, which only its agent can make.
_RUNTIME_ENV_VARIABLES = ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Ray's message on the death of a node.
_LOST_NODE = re.compile(r"node with node id: (\w+) and address: \S+ and node name: (\S+) has been marked dead")


def without_working_directory() -> Any:  # noqa: ANN401 (Ray is not imported at the top)
    """Return a configuration for `ray.init` by which workers do not import from the driver's working directory.

    Raises:
        ClusterError: Ray is not the expected version.
    """
    from ray.job_config import JobConfig

    WORKING_DIRECTORY.fits()
    # Ray's only switch for it. In a job without a runtime environment it has no other effect.
    return JobConfig(_client_job=True)


@contextmanager
def without_services() -> Iterator[None]:
    """Have `ray.init` start only Ray's own two processes, where the patches are switched on and fit."""
    with ExitStack() as stack:
        stack.enter_context(
            MONITORS.applied(
                lambda params: partial(
                    params, no_monitor=True, include_log_monitor=False, dashboard_agent_listen_port=0
                )
            )
        )
        wanted = any(name in os.environ for name in _RUNTIME_ENV_VARIABLES)
        # An agent looks for the API server every second.
        if not wanted and shutil.which("sh") and shutil.which("cat") and AGENTS.fits():
            stack.enter_context(AGENTS.applied(_without_agents, lambda _: False))
            stack.enter_context(API_SERVER.applied(lambda _: lambda node, **options: None))
        yield


def _without_agents(start_ray_process: Callable[..., Any]) -> Callable[..., Any]:
    """Have the raylet start `cat` in place of its node's two agents: like them, it ends when the raylet does.

    The raylet requires a command, keeps a pipe to it, and waits for ports; nobody listens at the ports given here.
    """

    def start(command: list[str], *args: Any, **options: Any) -> Any:  # noqa: ANN401 (Ray's own)
        options_of = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
        session, node = options_of.get("--session_dir"), options_of.get("--node_id")
        if session and node and all(any(part.startswith(agent) for part in command) for agent in _AGENT_COMMANDS):
            for name in _AGENT_PORTS:
                Path(session, f"{name}_{node}").write_text("1")
            command = [
                next((agent + _STAND_IN for agent in _AGENT_COMMANDS if part.startswith(agent)), part)
                for part in command
            ]
        return start_ray_process(command, *args, **options)

    return start


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have Ray use 127.0.0.1 for its node, as on macOS and Windows: all of its processes then listen there alone.

    Raises:
        ClusterError: Ray is not the expected version.
    """
    # This process may have read the constant long ago; the variable is for the processes that it starts.
    of_user = os.environ.get(_LOOPBACK_VARIABLE)
    with LOOPBACK.applied(lambda _: False):
        os.environ[_LOOPBACK_VARIABLE] = "0"
        try:
            yield
        finally:
            if of_user is None:
                del os.environ[_LOOPBACK_VARIABLE]
            else:
                os.environ[_LOOPBACK_VARIABLE] = of_user


@contextmanager
def own_token() -> Iterator[None]:
    """Have Ray take a new token from the environment, and afterwards restore the former settings.

    Raises:
        ClusterError: Ray is not the expected version.
    """
    TOKEN.fits()
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    before = {name: os.environ.pop(name) for name in _AUTH_VARIABLES if name in os.environ}
    # The mode is left at Ray's default for a Ray that it starts; "disabled" is meant for other clusters.
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
def command_line_noted(without_secrets: Callable[[str], str]) -> Iterator[None]:
    """Have Ray record this process's command line without the secrets in its URIs: its dashboard shows it to all.

    Args:
        without_secrets: Removes them from a text.

    Raises:
        ClusterError: Ray is not the expected version.
    """
    with COMMAND_LINE.applied(lambda command_line: lambda: without_secrets(command_line())):
        yield


@contextmanager
def short_errors() -> Iterator[None]:
    """Log the death of a node in one line, and other messages of Ray only with --verbose: Ray prints pages.

    `log_to_driver=False` does not suppress them, and Ray 2.60 has no option. Takes effect when Ray is joined.
    """
    with SHORT_ERRORS.applied(lambda _: _log_briefly):
        yield


def _log_briefly(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    text = " ".join(str(line) for line in data.get("lines", ())).strip()
    lost = _LOST_NODE.search(text)
    if lost is not None:
        logger.warning("node=%s (%s) is lost; other nodes redo its work", lost[1][:8], lost[2])
    else:
        logger.info("Ray says: %s", text.partition("Possible reasons")[0].partition("\n")[0][:300])
