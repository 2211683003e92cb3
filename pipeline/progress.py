"""Tell how far a run is: one live line on a terminal, a line every ten seconds in a log, or nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from pipeline.config import Progress
from pipeline.dest.commits import Commit, Totals

LOG_EVERY_S = 10.0
LIVE_EVERY_S = 0.2


@dataclass(slots=True)
class ProgressPrinter:
    """Print progress on standard error.

    Attributes:
        kind: auto is a live line on a terminal, and log lines elsewhere.
        units: In the plan.
        total_bytes: Of all input.
        totals: What earlier runs finished; commits are added to it.
    """

    kind: Progress
    units: int
    total_bytes: int
    totals: Totals
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _live: bool = False
    _started: float = field(default_factory=time.perf_counter)
    _printed: float = 0.0
    _rows_before: int = 0
    _bytes_before: int = 0
    _width: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._live = self.kind is Progress.AUTO and self.stream.isatty()
        self._rows_before = self.totals.rows
        self._bytes_before = self.totals.bytes_read
        self._printed = time.perf_counter()

    def add(self, commit: Commit) -> None:
        """Count a finished unit in, and print where it is time."""
        self.totals.add(commit)
        self.tick()

    def tick(self) -> None:
        """Print where it is time."""
        every = LIVE_EVERY_S if self._live else LOG_EVERY_S
        with self._lock:
            if time.perf_counter() - self._printed >= every:
                self._print(self.line())

    @contextmanager
    def ticking(self, show: Callable[[], None]) -> Iterator[None]:
        """Print where it is time also while nothing finishes; call `show` each second, and once at the end."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(1.0):
                self.tick()
                show()

        ticker = threading.Thread(target=tick, name="progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            show()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.kind is Progress.NONE:
            return
        if self._live and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the live line as it stands last."""
        if self._live and self._width:
            self._print(self.line())
            self.stream.write("\n")
            self.stream.flush()
            self._width = 0

    def line(self) -> str:
        """Return the line: units, images, images/s of this run, errors, and the time left by bytes."""
        t = self.totals
        seconds = time.perf_counter() - self._started
        rate = (t.rows - self._rows_before) / seconds if seconds > 0 else 0.0
        read = t.bytes_read - self._bytes_before
        left = max(0, self.total_bytes - t.bytes_read)
        eta = f", {_duration(left / read * seconds)} left" if read and left and t.units < self.units else ""
        errors = f", {sum(t.errors.values())} not labelled" if t.errors else ""
        return f"{t.units}/{self.units} units, {t.rows} images, {rate:.0f} images/s{errors}{eta}"

    def _print(self, text: str) -> None:
        self._printed = time.perf_counter()
        if self.kind is Progress.NONE:
            return
        if self._live:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = max(self._width, len(text))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole:02d} s" if minutes else f"{whole} s"
