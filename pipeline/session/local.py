"""Start a local Ray for one command, without the services that only a cluster or a person at a dashboard needs.

Who reaches a Ray runs code as whoever started it. So each has a token of its own, which only the environment of its
processes holds (Ray's own is in a file that lasts, and that others can read where they can read the home folder), and
lies in a folder that is closed to others (Ray's own are open to all for writing).
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
from pipeline.patches.start_patches import on_loopback, own_token, without_services

# Ray lets a driver in when workers that it started in advance are there, and waits for ever where one of them dies first.
# And nobody looks at the events of a local Ray's tasks.
_SYSTEM_CONFIG = {"prestart_worker_first_driver": False, "task_events_report_interval_ms": 0}
# Of a start that takes 2 s; a machine that is busy with ten others has been seen to take 20.
START_TIMEOUT_S = 120.0
START_VARIABLE = "SHARDLABEL_RAY_START_S"
# The name of a Unix socket has at most 103 bytes (107 on Linux), of which Ray's folders below ours take 66.
_LONGEST_FOLDER = 37

# What has to be undone once this process has left its Ray.
until_left = ExitStack()


def start_local_ray(library: str = "ray.data", **options: Any) -> None:  # noqa: ANN401 (ray.init's own)
    """Start a Ray of this command's own, whatever others run on this machine; `stop_ray` ends it.

    Args:
        library: Ray's library that is needed next, imported meanwhile.
        options: For `ray.init`, which raises what it raises.

    Raises:
        ConfigError: SHARDLABEL_RAY_PATCHES names no patch, or SHARDLABEL_RAY_START_S is no number.
        ClusterError: Ray is not the one that this is made for, and would not be closed to others.
    """
    check_switch(PATCHES)
    seconds = _start_timeout()
    # Ray's processes take a second and a half to come up, in which this one has nothing else to do.
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


def stop_ray() -> None:
    """Leave Ray; a local one ends, and nothing of it stays on disk or in the environment."""
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
            **options,
        )
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise RuntimeError("it would listen on every interface of this machine, and not on loopback alone")


@contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder that is closed to others, where Ray would make its own, and remove it in the end."""
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = tempfile.mkdtemp(prefix="ray-", dir=place)
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        # Not the folder itself: Ray opens to all what it is given.
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
    """End this process: Ray waits for ever for some of its own that died while it came up."""
    sys.stderr.write(f"shardlabel: error: Ray did not come up within {seconds:g} s; run the same command again\n")
    sys.stderr.flush()
    os._exit(1)
