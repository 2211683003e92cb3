"""How far a run is: labelled images over time, and the steady rate in it. The same for every tool.

What holds a model appends a line to a file whenever a batch has its labels (`note_labelled`). Where a tool cannot be
asked to, as ours, the times of its finished Parquet files say the same, in larger steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

FILE = "SHARDLABEL_BENCH_PROGRESS"
# Before the first and after the second share of the images a run starts up and runs out of work.
STEADY = (0.15, 0.90)

# Times (seconds since the epoch) and images that were labelled then, in order of time.
Events = list[tuple[float, int]]


def note_labelled(count: int) -> None:
    """Say that so many images more have their labels: one short line, appended at once."""
    path = os.environ.get(FILE)
    if path:
        with Path(path).open("ab", buffering=0) as file:
            file.write(f"{time.time():.3f} {count}\n".encode())


def read_events(path: Path) -> Events:
    """Return what `note_labelled` wrote."""
    if not path.exists():
        return []
    return sorted((float(at), int(count)) for at, count in map(str.split, path.read_text().splitlines()))


def file_events(paths: Iterable[Path]) -> Events:
    """Return the time of the last write and the rows of each Parquet file."""
    return sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in paths)


def steady_rate(events: Events) -> float | None:
    """Return images/s: the slope of the line of least squares through (time, images so far) within STEADY.

    All points count, so that it matters little whether they are batches of 16 images or files of 100. None where fewer
    than three points lie there.
    """
    at = np.asarray([time for time, _ in events])
    done = np.cumsum([count for _, count in events])
    if not len(done):
        return None
    inside = (done >= STEADY[0] * done[-1]) & (done <= STEADY[1] * done[-1])
    if inside.sum() < 3 or np.ptp(at[inside]) == 0:
        return None
    return float(np.polyfit(at[inside] - at[0], done[inside], 1)[0])
