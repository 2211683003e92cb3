"""What was found in a DEST; the report's page is made of nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.dest.plan import Plan
from pipeline.report.contact_sheet import ContactSheet
from pipeline.report.scan import Counts, LabelledRow
from pipeline.report.unit_table import UnitTable


@dataclass(frozen=True, slots=True)
class Findings:
    """What a DEST holds; the page is made of nothing else.

    Attributes:
        dest: Where it is, for people.
        plan: What was to be done.
        units: What is done.
        counts: What is in the part files.
        examples: Rows of each status other than ok.
        sheet: Samples with their pictures.
        summary: Of the last run, as in summary.json; {} where there is none.
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
        """Return the counts in a line."""
        totals = self.units.totals
        errors = "".join(f", {count} {status}" for status, count in sorted(totals.errors.items()))
        return f"{totals.rows} images: {totals.ok} ok{errors}; {totals.units} of {self.plan.units} units are finished"
