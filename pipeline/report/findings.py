"""What is in a DEST, finished or not. The report's page is made from nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.dest.plan import SUMMARY_FILE, Plan
from pipeline.dest.prediction_log import open_records
from pipeline.report.contact_sheet import ContactSheet, build_sheet
from pipeline.report.scan import Counts, LabelledRow, count_parts, read_rows
from pipeline.report.unit_table import UnitTable, add_end_times
from pipeline.storage.storage import Storage

# Rows of each error that the page shows.
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Findings:
    """What a DEST holds.

    Attributes:
        dest: Name of DEST in messages.
        plan: The run's plan.
        units: Figures of the finished units.
        counts: Sums over the part files.
        examples: Rows of each status other than ok.
        sheet: Samples with their pictures.
        summary: Summary of the last run, as in summary.json; {} where there is none.
    """

    dest: str
    plan: Plan
    units: UnitTable
    counts: Counts
    examples: dict[str, list[LabelledRow]]
    sheet: ContactSheet
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every unit of the plan is done."""
        return self.units.totals.units == self.plan.units

    def sentence(self) -> str:
        """Return the counts in one line."""
        totals = self.units.totals
        errors = "".join(f", {count} {status}" for status, count in sorted(totals.errors.items()))
        return f"{totals.rows} images: {totals.ok} ok{errors}; {totals.units} of {self.plan.units} units are finished"


def gather(dest: Storage) -> Findings:
    """Read through a DEST. Memory does not grow with its rows; time does: some minutes for a billion.

    Raises:
        SourceError: DEST has no plan.
        ConfigError: The plan or a record is damaged.
        StorageError: Plan or records cannot be read. A part file or SOURCE that cannot be read is only noted.
    """
    plan, records = open_records(dest)
    units = UnitTable(plan.units)
    counts = count_parts(dest, filter(units.add, records))
    add_end_times(dest, plan, units)
    wanted = {status: places[:EXAMPLES] for status, places in sorted(counts.bad.items())}
    places = [place for some in wanted.values() for place in some]
    rows = {row.place: row for row in read_rows(dest, places, plan.part)}
    return Findings(
        dest=dest.describe(),
        plan=plan,
        units=units,
        counts=counts,
        examples={status: [rows[p] for p in places if p in rows] for status, places in wanted.items()},
        sheet=build_sheet(dest, plan, units, counts),
        summary=_read_summary(dest),
    )


def _read_summary(dest: Storage) -> dict[str, Any]:
    """Return the last run's summary; a run that was killed leaves none, or an older one."""
    if dest.stat(SUMMARY_FILE) is None:
        return {}
    try:
        summary = json.loads(dest.read_bytes(SUMMARY_FILE))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}
