"""`shardlabel report`: look through a DEST, finished or not, and make one HTML page of it."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.errors import StorageError
from pipeline.dest.plan import SUMMARY_FILE
from pipeline.dest.prediction_log import open_records
from pipeline.quantities import bytes_text
from pipeline.report.contact_sheet import build_sheet
from pipeline.report.findings import Findings
from pipeline.report.scan import count_parts, read_rows
from pipeline.report.unit_table import UnitTable, add_end_times
from pipeline.storage.retries import reason
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
    units = UnitTable.empty(plan.units)
    counts = count_parts(dest, filter(units.add, records))
    add_end_times(dest, plan, units)
    wanted = {status: places[:EXAMPLES] for status, places in sorted(counts.bad.items())}
    places = [place for some in wanted.values() for place in some]
    rows = {(row.unit, row.position): row for row in read_rows(dest, places, plan.part)}
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
    try:
        findings = gather(storage)
    except StorageError as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            raise
        # A run that is going on has merged its commit records while they were read.
        findings = gather(storage)
    page = render(findings).encode("utf-8", "replace")
    write_page(output, page)
    return f"{findings.sentence()}\nreport: {output} ({bytes_text(len(page))})"


def _read_summary(dest: Storage) -> dict[str, Any]:
    """Return the last run's summary; a run that was killed leaves none, or an older one."""
    if dest.stat(SUMMARY_FILE) is None:
        return {}
    try:
        summary = json.loads(dest.read_bytes(SUMMARY_FILE))
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def write_page(output: str, content: bytes) -> None:
    """Write a page whole, or not at all.

    Args:
        output: A path or a URI.
        content: The page.

    Raises:
        StorageError: It cannot be written.
    """
    if "://" in output:
        folder, _, name = output.rpartition("/")
        open_storage(folder).write_bytes(name, content)
        return
    temporary: Path | None = None
    try:
        path = Path(output).expanduser()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except (OSError, RuntimeError, ValueError) as err:  # the latter: nobody is called ~so, or it is no name
        if isinstance(err, OSError) and temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {output or 'a page without a name'}: {reason(err)}") from err
