"""Run a command and measure it from outside: seconds, CPU seconds and the peak memory of its whole process tree.

    python -m benchmarks.measure -- shardlabel label ... --json

Memory is the proportional set size (PSS, /proc/PID/smaps_rollup) summed over the command and all its descendants, so
that a page shared by several processes, as Ray's object store is, counts once. CPU seconds are user and system time of
the same processes as last seen: what a process uses in its last EVERY_S seconds is not in them. The last line of output
is one JSON object, which holds the command's own last line where that is JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

EVERY_S = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_table() -> dict[int, tuple[int, float]]:
    """Return parent and CPU seconds of every process, by pid, from /proc."""
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            table[int(folder.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return table


def descendants(pid: int, table: dict[int, tuple[int, float]] | None = None) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for child, (parent, _) in (process_table() if table is None else table).items():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found


def memory_mb(pids: list[int]) -> float:
    """Return the proportional set size of processes, in MB."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb * 1024 / 1e6


def kill(pids: list[int]) -> None:
    """End processes, the youngest first."""
    for pid in reversed(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _watch(process: subprocess.Popen, memory_every_s: float, timeout_s: float) -> tuple[float, int, float]:
    """Look at a process tree until it ends; returns peak memory in MB, most processes, and CPU seconds."""
    started, looked = time.perf_counter(), float("-inf")
    peak, largest = 0.0, 0
    cpu_s: dict[int, float] = {}
    while process.poll() is None:
        table = process_table()
        pids = descendants(process.pid, table)
        cpu_s.update((pid, table[pid][1]) for pid in pids if pid in table)
        largest = max(largest, len(pids))
        if time.perf_counter() - looked >= memory_every_s:
            peak, looked = max(peak, memory_mb(pids)), time.perf_counter()
        if time.perf_counter() - started > timeout_s:
            kill(pids)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EVERY_S)
    return peak, largest, sum(cpu_s.values())


def measure(
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    memory_every_s: float = EVERY_S,
    stderr: IO[bytes] | None = None,
    timeout_s: float = float("inf"),
) -> dict:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        env: Its environment; else this process's.
        memory_every_s: Seconds between two looks at the memory, each of which costs some 2 ms per process.
        stderr: Where the command's standard error goes; else to this process's.
        timeout_s: After so long the whole tree is killed.
    """
    with tempfile.TemporaryFile("w+") as out:  # a pipe that nobody reads would stop a command that says much
        started, begun = time.perf_counter(), time.time()
        process = subprocess.Popen(command, stdout=out, stderr=stderr, env=env)
        try:
            peak, largest, cpu_s = _watch(process, memory_every_s, timeout_s)
        except BaseException:
            kill(descendants(process.pid))
            raise
        seconds = time.perf_counter() - started
        out.seek(0)
        said = out.read()
    figures = {
        "seconds": round(seconds, 3),
        "started": round(begun, 3),
        "exit": process.returncode,
        "cpu_seconds": round(cpu_s, 2),
        "peak_memory_mb": round(peak, 1),
        "processes": largest,
    }
    try:
        figures["said"] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        figures["said"] = said[-500:]
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[sys.argv.index("--") + 1 :])))
