"""Show a run's progress: one live line on a terminal, a line every ten seconds in a log, or nothing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from pipeline.config import Progress
from pipeline.dest.commits import Commit, Totals
from pipeline.quantities import duration_text

LOG_EVERY_S = 10.0
LIVE_PER_S = 2.0


class ProgressPrinter:
    """Print progress on standard error.

    Args:
        kind: auto is a live line on a terminal, and log lines elsewhere.
        units: Number of units in the plan.
        total_bytes: Bytes of all input; if None, units give the time left.
        totals: What earlier runs finished; commits are added to it.
        stream: Where to print instead of standard error.
    """

    def __init__(
        self, kind: Progress, units: int, total_bytes: int | None, totals: Totals, *, stream: TextIO | None = None
    ) -> None:
        self.totals = totals
        self._units = units
        self._total_bytes = total_bytes
        self._rows_before = totals.rows
        self._units_before = totals.units
        self._bytes_before = totals.bytes_read
        self._started = self._printed = time.perf_counter()
        self._labelling_since = math.inf  # when the first of the units that have finished was begun
        self._lock = threading.Lock()
        self._console = Console(file=stream, stderr=True, quiet=kind is Progress.NONE)
        # With FORCE_COLOR set, Rich takes a log for a terminal.
        self._is_live = kind is Progress.AUTO and self._console.is_interactive and self._console.file.isatty()
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        self._bars = Bars(
            *columns,
            console=self._console,
            refresh_per_second=LIVE_PER_S,
            redirect_stdout=False,  # the caller prints there: the summary as JSON
            disable=not self._is_live,
        )
        self._bar = self._bars.add_task(self.line(), total=units, completed=totals.units)

    def add(self, commit: Commit) -> None:
        """Count a finished unit, and print if it is time."""
        self.totals.add(commit)
        self._labelling_since = min(self._labelling_since, time.perf_counter() - commit.seconds)
        self.tick()

    def tick(self) -> None:
        """Print if it is time."""
        if self._is_live:
            self._bars.update(self._bar, completed=self.totals.units, description=self.line())
            return
        with self._lock:
            if time.perf_counter() - self._printed >= LOG_EVERY_S:
                self._printed = time.perf_counter()
                self.say(self.line())

    @contextmanager
    def ticking(self, show: Callable[[], None]) -> Iterator[None]:
        """Print on time even while no unit finishes; call `show` every second, and once at the end."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(1.0):
                self.tick()
                show()

        ticker = threading.Thread(target=tick, name="progress", daemon=True)
        ticker.start()
        try:
            with self._bars:
                if self._is_live:
                    # Rich hides the cursor, and a killed run could not show it again.
                    self._console.show_cursor()
                yield
        finally:
            done.set()
            ticker.join()
            show()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._console.out(text, highlight=False)

    def line(self) -> str:
        """Return the line: units, images, images/s of this run, errors, and the time left by bytes or units.

        The rate and the time left do not count the start-up: they begin when the first finished unit was begun. Until
        this run has finished a unit, the line says only how long the run has taken.
        """
        t, now = self.totals, time.perf_counter()
        if t.units == self._units_before:
            return f"{t.units}/{self._units} units, none finished yet after {now - self._started:.0f} s"
        seconds = now - self._labelling_since
        rate = (t.rows - self._rows_before) / seconds if seconds > 0 else 0.0
        if self._total_bytes is None:
            read, left = t.units - self._units_before, self._units - t.units
        else:
            read, left = t.bytes_read - self._bytes_before, max(0, self._total_bytes - t.bytes_read)
        eta = f", {duration_text(left / read * seconds)} left" if read and left and t.units < self._units else ""
        errors = f", {sum(t.errors.values())} not labelled" if t.errors else ""
        return f"{t.units}/{self._units} units, {t.rows} images, {rate:.0f} images/s{errors}{eta}"
