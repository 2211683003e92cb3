"""The peak private memory of processes, sampled every 0.1 s from outside: for tests that hostile input is bounded.

Private memory (Private_Clean + Private_Dirty of /proc/PID/smaps_rollup) excludes memory that processes share: libraries,
and Ray's object store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

EVERY_S = 0.1


def private_bytes(pid: int) -> int:
    """Return a process's private memory in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def children(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def named(pids: Iterable[int], word: str) -> list[int]:
    """Return the processes whose command line contains a word, such as `ray::` or an actor's class name."""
    kept = []
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in line:
            kept.append(pid)
    return kept


class PeakMemory:
    """Watch processes while the block runs.

    Args:
        pids: Called for every sample; returns the current processes.

    Attributes:
        peaks: The peak of each process in bytes, by pid.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: dict[int, int] = {}

    @property
    def worst(self) -> int:
        """The largest peak of a process, bytes."""
        return max(self.peaks.values(), default=0)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        for pid in self._pids():
            self.peaks[pid] = max(self.peaks.get(pid, 0), private_bytes(pid))
