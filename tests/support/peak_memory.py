"""The most private memory that processes held, looked at every 0.1 s from outside: for proofs that hostile input is bounded.

Private memory (Private_Clean + Private_Dirty of /proc/PID/smaps_rollup) leaves out what processes share: libraries, and
Ray's object store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

EVERY_S = 0.1


def private_bytes(pid: int) -> int:
    """Return a process's private memory in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def children(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def named(pids: Iterable[int], word: str) -> list[int]:
    """Keep the processes whose command line has a word, such as `ray::` or the name of an actor's class."""
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
        pids: Called at every look; which processes there are now.

    Attributes:
        peaks: Bytes, by pid: the most that each held.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: dict[int, int] = {}

    @property
    def worst(self) -> int:
        """Bytes: the most that any one process held."""
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
