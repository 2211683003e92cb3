"""The result of a run, for people, for scripts, and for `_shardlabel/summary.json`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field

from pipeline.dest.commits import MAX_NAMED, Commit, Totals
from pipeline.dest.plan import SUMMARY_FILE
from pipeline.error_budget import ErrorBudget
from pipeline.progress import ProgressPrinter
from pipeline.quantities import rate_text
from pipeline.storage.odd_keys import visible
from pipeline.storage.storage import Storage


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run, in numbers; `sentences` returns them as text.

    Attributes:
        status: done, interrupted, failed, or stopped at --max-error-rate.
        output: DEST.
        model: Name of the model, with precision and decode mode beside it.
        units: Units in the plan; `units_done` of them are finished, `units_now` by this run.
        images: Rows in DEST; `ok` of them are labelled, the others in `errors` by status.
        error_rate: Share of images that could not be labelled.
        seconds: Duration of this run from the command's start; `images_now / seconds` is `images_per_s`.
        first_commit_s: Seconds from the start to the first finished unit of this run.
        incomplete: What is missing, by shard (the first hundred shards).
        failed: Why units failed in this run, by unit and shards (the first hundred of `failed_units`).
        failure: Why the run failed or stopped.
        complete: Whether all units are finished.
        new_units: Number of units that --append added to the plan; None without it.
    """

    status: str
    output: str
    model: str
    precision: str
    decode: str
    units: int
    units_done: int
    units_now: int
    images: int
    images_now: int
    ok: int
    errors: dict[str, int]
    error_rate: float
    bytes_read: int
    output_bytes: int
    seconds: float
    images_per_s: float
    first_commit_s: float | None = None
    incomplete_shards: int = 0
    incomplete: dict[str, str] = field(default_factory=dict)
    failed_units: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    complete: bool = True
    new_units: int | None = None

    def exit_code(self, max_error_rate: float) -> int:
        """Return the command's exit code: 0 done, 1 failed, 3 over --max-error-rate, 130 interrupted."""
        over = self.status == "stopped" or self.error_rate > max_error_rate
        return {"interrupted": 130, "failed": 1}.get(self.status, 3 if over else 0)

    def sentences(self) -> str:
        """Return the result as text for people."""
        errors = ", ".join(f"{count} {status}" for status, count in sorted(self.errors.items()))
        lines = []
        if self.status == "done" and not self.units_now:
            nothing = "nothing to do" if self.new_units is None else "nothing new in SOURCE"
            lines.append(f"{nothing}: all {self.units} units of {self.output} are finished")
        elif self.status == "done":
            lines.append(
                f"labelled {self.images_now} images in {self.seconds:.1f} s ({rate_text(self.images_per_s)} images/s) "
                f"with {self.model} {self.precision}"
            )
        else:
            why = f": {self.failure}" if self.failure else ""
            lines.append(f"{self.status}{why}")
            lines.extend(f"{visible(unit)} failed: {what}" for unit, what in self.failed.items())
            lines.append(f"{self.units_done} of {self.units} units are finished; the same command does the rest")
        lines.append(f"{self.images} images in {self.output}: {self.ok} ok" + (f", {errors}" if errors else ""))
        for shard, what in self.incomplete.items():
            lines.append(f"warning: {visible(shard)}: {what}")
        if self.incomplete_shards > len(self.incomplete):
            lines.append(f"warning: and {self.incomplete_shards - len(self.incomplete)} more incomplete shards")
        return "\n".join(lines)


@dataclass(slots=True)
class Tally:
    """The counts of a run in progress.

    Attributes:
        totals: Sums over all finished units, of this run and earlier ones; the printer adds to them.
        started: `time.perf_counter()` when the command began.
    """

    totals: Totals
    printer: ProgressPrinter
    started: float
    units_now: int = 0
    images_now: int = 0
    first_commit_s: float | None = None
    failed_units: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    stopped: str | None = None

    def add(self, commit: Commit) -> None:
        """Count a finished unit."""
        self.units_now += 1
        self.images_now += commit.rows
        self.first_commit_s = self.first_commit_s or time.perf_counter() - self.started
        self.printer.add(commit)

    def add_failed(self, unit: str, why: str) -> None:
        """Count a unit that failed on its own; others may continue."""
        self.failed_units += 1
        if len(self.failed) < MAX_NAMED:
            self.failed[unit] = why
        self.printer.say(f"shardlabel: {unit} failed: {why}")

    def is_over(self, budget: ErrorBudget) -> bool:
        """Tell whether the failures in DEST exceed a budget; if they do, set `stopped` to the reason."""
        images, failed = self.totals.rows, self.totals.rows - self.totals.ok
        if not budget.is_spent(images, failed):
            return False
        self.stopped = (
            f"{failed} of the first {images} images ({failed / images:.1%}) could not be labelled, more than "
            f"--max-error-rate {budget.rate:g} even allowing for chance"
        )
        return True

    def report(
        self, *, output: str, model: str, precision: str, decode: str, units: int, new_units: int | None = None
    ) -> RunReport:
        """Return the report of the run so far."""
        totals = self.totals
        seconds = time.perf_counter() - self.started
        failure = self.failure
        if failure is None and self.failed_units:
            failure = f"{self.failed_units} of {units} units failed"
        complete = totals.units == units
        status = "done" if complete else "failed" if failure else "stopped" if self.stopped else "interrupted"
        return RunReport(
            status=status,
            output=output,
            model=model,
            precision=precision,
            decode=decode,
            units=units,
            units_done=totals.units,
            units_now=self.units_now,
            images=totals.rows,
            images_now=self.images_now,
            ok=totals.ok,
            errors=totals.errors,
            error_rate=(totals.rows - totals.ok) / totals.rows if totals.rows else 0.0,
            bytes_read=totals.bytes_read,
            output_bytes=totals.output_bytes,
            seconds=round(seconds, 3),
            images_per_s=round(self.images_now / seconds, 1),
            first_commit_s=None if self.first_commit_s is None else round(self.first_commit_s, 3),
            incomplete_shards=totals.incomplete,
            incomplete=totals.incomplete_named,
            failed_units=self.failed_units,
            failed=self.failed,
            failure=failure or (None if complete else self.stopped),
            complete=complete,
            new_units=new_units,
        )


def write_summary(dest: Storage, report: RunReport) -> None:
    """Write summary.json."""
    dest.write_bytes(SUMMARY_FILE, json.dumps(asdict(report), indent=1).encode())
