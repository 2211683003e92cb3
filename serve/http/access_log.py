"""One JSON line per request, written by a thread: the request does not wait for the disk."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson

logger = logging.getLogger(__name__)

PERIOD_S = 0.25
# Of lines that wait for a disk that does not take them; older ones are given up, and a line {"lost": N} counts them.
MAX_WAITING = 100_000


class AccessLog:
    """Append lines to a file, or to standard error.

    Several processes may append to one file: each write ends with a whole line, and O_APPEND keeps them apart. The file is
    opened anew each time: one that was moved away, as logrotate does it, is begun anew under its name.

    Args:
        target: A path, or "-" for standard error.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        self._path = target
        self._append(b"")
        self._lines: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        # What the disk did not take yet, and how many lines were given up since it last took one.
        self._unwritten = b""
        self._lost = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def add(self, **fields: Any) -> None:  # noqa: ANN401 (whatever JSON has)
        """Add one request; returns at once."""
        if len(self._lines) == self._lines.maxlen:
            self._lost += 1
        self._lines.append({"time": time.time(), **fields})

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed.set()
        self._thread.join(timeout=5.0)

    def _write(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closed.wait(PERIOD_S)
            try:
                while self._unwritten or self._lines:
                    self._unwritten = self._unwritten or self._taken()
                    self._unwritten = self._unwritten[self._append(self._unwritten) :]
            except OSError as err:
                logger.warning("access log: cannot be written, %d lines wait: %s", len(self._lines), err)

    def _taken(self) -> bytes:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if self._lost:
            lines.append({"time": time.time(), "lost": self._lost})
            self._lost = 0
        for line in lines:
            moment = datetime.fromtimestamp(line["time"], UTC).isoformat(timespec="milliseconds")
            line["time"] = moment.replace("+00:00", "Z")
        return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)

    def _append(self, text: bytes) -> int:
        """Write once; return how many bytes the disk took."""
        fd = os.dup(2) if self._path == "-" else os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            return os.write(fd, text)
        finally:
            os.close(fd)
