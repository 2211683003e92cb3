"""Run a command and measure it from outside: seconds, and the peak memory of its whole process tree.

    python -m benchmarks.measure -- shardlabel label ... --json

Memory is the proportional set size (PSS, /proc/PID/smaps_rollup) summed over the command and all its descendants, so
that a page shared by several processes, as Ray's object store is, counts once. The last line of output is one JSON object,
which holds the command's own last line where that is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

EVERY_S = 0.5


def descendants(pid: int) -> list[int]:
    """Return a process and all below it, from /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
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


def measure(command: list[str]) -> dict:
    """Run a command to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, largest = 0.0, 0
    while process.poll() is None:
        pids = descendants(process.pid)
        peak, largest = max(peak, memory_mb(pids)), max(largest, len(pids))
        time.sleep(EVERY_S)
    out = process.stdout.read()
    figures = {
        "seconds": round(time.perf_counter() - started, 3),
        "exit": process.returncode,
        "peak_memory_mb": round(peak, 1),
        "processes": largest,
    }
    try:
        figures["said"] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        figures["said"] = out[-500:]
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[sys.argv.index("--") + 1 :])))
