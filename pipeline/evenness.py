"""How even a plan is: the share of the workers' time with work, by the sizes of units alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapreplace
from itertools import groupby

from pipeline.sources.unit import Unit


def unit_bytes(units: Iterable[Unit]) -> Iterator[float]:
    """Yield the bytes of each unit; the units of one Parquet file count as equal parts of it."""
    for shard, group in groupby(units, key=_parquet_in_parts):
        if shard is None:
            yield from (unit.size for unit in group)
            continue
        parts = list(group)
        yield from (unit.size / len(parts) for unit in parts)


def _parquet_in_parts(unit: Unit) -> str | None:
    piece = unit.slices[0]
    return piece.shard if piece.stop >= 0 and not piece.is_tar else None


def busy_share(sizes: Sequence[float], workers: int) -> float:
    """Return the share of the workers' time with work until the last unit ends, 0 to 1.

    Each worker takes the next unit when it has finished one.
    """
    loads = [0.0] * min(workers, max(1, len(sizes)))
    for size in sizes:
        heapreplace(loads, loads[0] + size)
    return sum(sizes) / (workers * max(loads)) if max(loads) else 1.0
