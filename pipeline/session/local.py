"""Start a local Ray for one command, without the services that only a cluster or a person at a dashboard needs.

Anyone who can reach a Ray can run code as the user who started it. So each local Ray has its own token, which only the
environment of its processes holds: Ray's default token is in a file that lasts, and that others can read if they can read
the home folder. Its folder is closed to others; Ray's default folders are writable by all.
"""

from __future__ import annotations

import atexit
import logging
import os
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

from models.errors import ConfigError
from pipeline.patches.patch import check_switch
from pipeline.patches.patches import PATCHES
from pipeline.patches.start_patches import on_loopback, own_token, without_services, without_working_directory

# Ray admits a driver once its prestarted workers are there, and waits for ever if one of them dies first.
# Nobody looks at the task events of a local Ray.
_SYSTEM_CONFIG = {"prestart_worker_first_driver": False, "task_events_report_interval_ms": 0}
# A start takes 2 s; on a machine busy with ten others it took 20.
START_TIMEOUT_S = 120.0
START_VARIABLE = "SHARDLABEL_RAY_START_S"
# The path of a Unix socket has at most 103 bytes (107 on Linux); Ray's folders below ours take 66.
_LONGEST_FOLDER = 37

# Undone once this process has left its Ray.
until_left = ExitStack()


def start_local_ray(library: str = "ray.data", **options: Any) -> None:  # noqa: ANN401 (ray.init's own)
    """Start a Ray for this command alone, whatever else runs on this machine; `stop_ray` ends it.

    Args:
        library: Ray library that is needed next; it is imported meanwhile.
        options: Options of `ray.init`; its exceptions are passed on.

    Raises:
        ConfigError: SHARDLABEL_RAY_PATCHES names no patch, or SHARDLABEL_RAY_START_S is not a number.
        ClusterError: Ray is not the expected version, so it could not be closed to others.
    """
    check_switch(PATCHES)
    seconds = _start_timeout()
    # Ray's processes take 1.5 s to start, in which this process has nothing else to do.
    warm_up = threading.Thread(target=import_module, args=(library,), name=f"import-{library}", daemon=True)
    warm_up.start()
    watchdog = threading.Timer(seconds, _give_up, (seconds,))
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


def join_ray(address: str) -> None:
    """Join the Ray at an address, as its driver."""
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, job_config=_job_config())


def _job_config() -> Any:  # noqa: ANN401 (Ray is not imported at the top)
    """Return a configuration for `ray.init` whose workers import from where this process does; None for Ray's own.

    Ray puts the working directory first on its workers' path. A folder `models` or `pipeline` there, of the user's own
    project, would hide ours.
    """
    from pipeline.session.metrics import JOB_VARIABLE

    # A submitted job's path is that of its submission.
    if JOB_VARIABLE in os.environ or Path.cwd() in {Path(entry).resolve() for entry in sys.path}:
        return None
    return without_working_directory()


def stop_ray() -> None:
    """Leave Ray. A local Ray ends, and nothing of it stays on disk or in the environment."""
    import ray

    ray.shutdown()
    until_left.close()


def _start(options: dict[str, Any]) -> None:
    import ray

    atexit.register(stop_ray)
    until_left.enter_context(own_token())
    folder = until_left.enter_context(_own_folder())
    with on_loopback(), without_services():
        ray.init(
            address="local",
            _temp_dir=folder,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _system_config=_SYSTEM_CONFIG,
            job_config=_job_config(),
            **options,
        )
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise RuntimeError("it would listen on every interface of this machine, not on loopback alone")


@contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder that is closed to others, where Ray would make its own, and remove it at the end."""
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = tempfile.mkdtemp(prefix="ray-", dir=place)
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        # Not the folder itself: Ray opens the folder that it is given to all.
        yield f"{folder}/r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_timeout() -> float:
    text = os.environ.get(START_VARIABLE, str(START_TIMEOUT_S))
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{START_VARIABLE}: expected seconds, got {text!r}") from None


def _give_up(seconds: float) -> None:
    """End this process: Ray waits for ever for some of its own processes if they die during the start."""
    sys.stderr.write(f"shardlabel: error: Ray did not come up within {seconds:g} s; run the same command again\n")
    sys.stderr.flush()
    os._exit(1)
