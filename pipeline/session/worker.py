"""What every process of a pool does first."""

from __future__ import annotations

import logging
import os
import sys

from models.parent import end_with_parent


def prepare_worker() -> None:
    """Send this worker's log to Ray's log, and end it with its raylet."""
    _log_to_stderr()
    _end_with_raylet()


def _log_to_stderr() -> None:
    """Write this project's log to standard error, which Ray keeps as the worker's log."""
    for name in ("pipeline", "models"):
        ours = logging.getLogger(name)
        if not ours.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s %(name)s pid={os.getpid()} %(message)s"))
            ours.addHandler(handler)
            ours.setLevel(logging.INFO)


def _end_with_raylet() -> None:
    """Have the kernel end this process when its raylet dies.

    Ray ends a worker then too, but some hang for ever, and keep their model's memory.
    """
    if os.environ.get("RAY_RAYLET_PID") == str(os.getppid()):
        end_with_parent()
