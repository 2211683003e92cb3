"""Where the seconds of a process go, by stage; this shows what a GPU waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Stage(StrEnum):
    """Where a unit's seconds go; the value completes "waits for ..."."""

    READ = "reading"
    DECODE = "decoding"
    LABEL = "labelling"
    WRITE = "writing"


class StageClock:
    """Seconds by stage. Several threads may count at the same time."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._total = dict.fromkeys(Stage, 0.0)
        self._lock = threading.Lock()

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds."""
        with self._lock:
            self._seconds[stage] += seconds
            self._total[stage] += seconds

    @contextmanager
    def measured(self, stage: Stage) -> Iterator[None]:
        """Count the time that the body takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def timed(self, stage: Stage, values: Iterable[T], *, within: Stage | None = None) -> Iterator[T]:
        """Pass values on, and count the time until each comes.

        Args:
            stage: Stage that makes the values.
            values: The values.
            within: Stage that consumes these values to make its own: the time counted here is subtracted there.
        """
        iterator = iter(values)
        while True:
            started = time.perf_counter()
            try:
                value = next(iterator)
            except StopIteration:
                return
            finally:
                seconds = time.perf_counter() - started
                self.add(stage, seconds)
                if within is not None:
                    self.add(within, -seconds)
            yield value

    def total(self) -> dict[Stage, float]:
        """Return everything counted so far."""
        with self._lock:
            return dict(self._total)

    def take(self) -> dict[Stage, float]:
        """Return the seconds counted since the last call."""
        with self._lock:
            taken, self._seconds = self._seconds, dict.fromkeys(Stage, 0.0)
        return taken
