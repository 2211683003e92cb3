"""`shardlabel report`: look through a DEST, finished or not, and make one HTML page of it."""

from __future__ import annotations

import json
from typing import Any

from pipeline.dest.plan import SUMMARY_FILE
from pipeline.dest.prediction_log import open_records
from pipeline.quantities import bytes_text
from pipeline.report.contact_sheet import build_sheet
from pipeline.report.files import write_page
from pipeline.report.findings import Findings
from pipeline.report.scan import count_parts, read_rows
from pipeline.report.unit_table import UnitTable, add_end_times, while_run_goes_on
from pipeline.storage.storage import Storage, open_storage

# Rows of each error that the page shows.
EXAMPLES = 5


def gather(dest: Storage) -> Findings:
    """Look through a DEST. Memory does not grow with its rows; time does: some minutes for a billion.

    Raises:
        SourceError: DEST holds no plan.
        ConfigError: The plan or a record is damaged.
        StorageError: Plan or records cannot be read. A part file or SOURCE that cannot is noted instead.
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


def write_report(dest: str, output: str) -> str:
    """Write the page about a DEST; return what to tell the user.

    Args:
        dest: A folder or URI that a run wrote to.
        output: Where the page goes: a path, or a URI.

    Raises:
        SourceError: DEST holds no plan.
        StorageError: DEST cannot be read, or the page not be written.
    """
    from pipeline.report.page import render

    storage = open_storage(dest)
    findings = while_run_goes_on(lambda: gather(storage))
    size = write_page(output, render(findings))
    return f"{findings.sentence()}\nreport: {output} ({bytes_text(size)})"


def _read_summary(dest: Storage) -> dict[str, Any]:
    """Return the last run's summary; a run that was killed leaves none, or an older one."""
    if dest.stat(SUMMARY_FILE) is None:
        return {}
    try:
        summary = json.loads(dest.read_bytes(SUMMARY_FILE))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}
