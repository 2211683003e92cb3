"""What you can see of a run in progress: metrics through Ray, and log lines with job, unit and node.

Metrics are counted once per unit, never per image. Each node exports those of its processes at its metrics port, as
`ray_shardlabel_...`; counters end in `_total` there. Log lines go to the log of the process, not to the terminal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

from pipeline.dest.commits import Commit, Totals
from pipeline.session.stage_clock import Stage, StageClock

if TYPE_CHECKING:
    from pipeline.sources.unit import Unit

logger = logging.getLogger(__name__)

# Scraped name, labels beside `job`, and description. Dashboards use these names.
COUNTERS = {
    "shardlabel_images": (("status",), "Images in finished units, by status."),
    "shardlabel_read_bytes": ((), "Bytes of input read for finished units."),
    "shardlabel_written_bytes": ((), "Bytes of Parquet written."),
    "shardlabel_stage_seconds": (("stage",), "Seconds of processes by stage: read, decode, label, write."),
    "shardlabel_unit_retries": ((), "Units retried after their process was lost."),
    "shardlabel_storage_retries": ((), "Retries of storage operations."),
}
GAUGES = {
    "shardlabel_units_done": ((), "Finished units, of this run and those before."),
    "shardlabel_units_left": ((), "Units that are not finished."),
    "shardlabel_images_per_second": ((), "Images per second over the last 30 s or so."),
}
RATE_OVER_S = 30.0
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def scraped_names() -> list[str]:
    """Return the metrics' names as a node exports them."""
    return sorted([f"ray_{name}_total" for name in COUNTERS] + [f"ray_{name}" for name in GAUGES])


def job_name(environment: Mapping[str, str]) -> str:
    """Return the submission id of the job that this process is the driver of; `local` outside of jobs."""
    try:
        config = orjson.loads(environment.get(JOB_VARIABLE, "{}"))
        return str(config["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return "local"


class UnitMetrics:
    """Counts the finished units of one process, and logs a line about each.

    Args:
        job: Name of the job.
        clock: Clock of this process.
    """

    def __init__(self, job: str, clock: StageClock) -> None:
        import ray
        from ray.util.metrics import Counter

        self._job = job
        self._clock = clock
        self._before = clock.total()
        self._lock = threading.Lock()
        self._node = ray.get_runtime_context().get_node_id()[:8]
        self._counters = {name: Counter(name, what, ("job", *labels)) for name, (labels, what) in COUNTERS.items()}
        logging.getLogger("pipeline.storage.retries").addFilter(self._count_retry)

    def begun(self, unit: Unit, attempt: int) -> None:
        """Count an attempt."""
        if attempt > 1:
            self._add("unit_retries", 1)
            logger.warning("job=%s unit=%d node=%s retried attempt=%d", self._job, unit.number, self._node, attempt)

    def done(self, unit: Unit, commit: Commit) -> None:
        """Count a finished unit."""
        for status, count in {"ok": commit.ok, **commit.errors}.items():
            self._add("images", count, status=status)
        self._add("read_bytes", commit.bytes_read)
        self._add("written_bytes", commit.size)
        with self._lock:
            before, self._before = self._before, self._clock.total()
            spent = {stage: seconds - before[stage] for stage, seconds in self._before.items()}
        for stage, seconds in spent.items():
            self._add("stage_seconds", seconds, stage=_STAGES[stage])
        logger.info(
            "job=%s unit=%d node=%s done rows=%d ok=%d seconds=%.2f shard=%s",
            self._job, unit.number, self._node, commit.rows, commit.ok, commit.seconds, unit.slices[0].shard,
        )  # fmt: skip

    def _count_retry(self, record: logging.LogRecord) -> bool:
        self._add("storage_retries", 1)
        return True

    def _add(self, name: str, amount: float, **labels: str) -> None:
        # Ray's counters refuse zero; a stage's share may be below zero where two threads count.
        if amount > 0:
            self._counters[f"shardlabel_{name}"].inc(amount, tags={"job": self._job, **labels})


class RunGauges:
    """Gauges of a run as a whole, set by its driver.

    Args:
        job: Name of the job.
        units: Number of units in the plan.
    """

    def __init__(self, job: str, units: int) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"job": job}
        self._units = units
        self._gauges = {name: Gauge(name, what, ("job", *labels)) for name, (labels, what) in GAUGES.items()}
        self._past: deque[tuple[float, int]] = deque()

    def show(self, totals: Totals) -> None:
        """Set the gauges to the progress of the run."""
        now = time.monotonic()
        self._past.append((now, totals.rows))
        while now - self._past[0][0] > RATE_OVER_S and len(self._past) > 2:
            self._past.popleft()
        seconds, rows = now - self._past[0][0], totals.rows - self._past[0][1]
        self._set("units_done", totals.units)
        self._set("units_left", self._units - totals.units)
        if seconds > 0:
            self._set("images_per_second", rows / seconds)

    def _set(self, name: str, value: float) -> None:
        self._gauges[f"shardlabel_{name}"].set(value, tags=self._tags)


_STAGES = {Stage.READ: "read", Stage.DECODE: "decode", Stage.LABEL: "label", Stage.WRITE: "write"}
