"""One JSON line per request, written by a thread: the request does not wait for the disk."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from typing import Any

logger = logging.getLogger(__name__)

PERIOD_S = 0.25
# Of lines that wait for a disk that does not take them; older ones are given up, and counted.
MAX_WAITING = 100_000


class AccessLog:
    """Append lines to a file, or to standard error.

    Several processes may append to one file: each write ends with a whole line, and O_APPEND keeps them apart.

    Args:
        target: A path, or "-" for standard error.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        self._fd = 2 if target == "-" else os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._lines: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def add(self, **fields: Any) -> None:  # noqa: ANN401 (whatever JSON has)
        """Add one request; returns at once."""
        self._lines.append({"time": time.time(), **fields})

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed.set()
        self._thread.join(timeout=5.0)
        if self._fd != 2:
            os.close(self._fd)

    def _write(self) -> None:
        while True:
            is_last = self._closed.wait(PERIOD_S)
            self._flush()
            if is_last:
                return

    def _flush(self) -> None:
        text = ""
        while self._lines:
            line = self._lines.popleft()
            line["time"] = _iso(line["time"])
            text += json.dumps(line, separators=(",", ":")) + "\n"
        if not text:
            return
        try:
            os.write(self._fd, text.encode())
        except OSError as err:
            logger.warning("access log: cannot be written: %s", err)


def _iso(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
