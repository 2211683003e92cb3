"""`shardlabel report`: the findings of a DEST as one HTML page that needs no other file, font or connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.html import pages
from pipeline.quantities import duration_text, many_text, rate_text, share_text
from pipeline.report.files import write_page
from pipeline.report.findings import Findings, gather
from pipeline.report.scan import SCORE_BINS
from pipeline.report.unit_table import while_run_goes_on
from pipeline.storage.storage import open_storage

TOP_LABELS = 30
TIME_BINS = 40
DURATION_BINS = 20
# Incomplete shards and unreadable files that the page names.
NAMED = 50

# Caption; name and height of each column; marks below the columns; headings of both when shown as a table.
Chart = tuple[str, list[tuple[str, float]], tuple[str, ...], tuple[str, str]]


def write_report(dest: str, output: str) -> str:
    """Write the page about a DEST; return what to tell the user.

    Args:
        dest: A folder or URI that a run wrote to.
        output: Path or URI of the page.

    Raises:
        SourceError: DEST has no plan.
        StorageError: DEST cannot be read, or the page cannot be written.
    """
    storage = open_storage(dest)
    findings = while_run_goes_on(lambda: gather(storage))
    return f"{findings.sentence()}\nreport: {write_page(output, render(findings))}"


def render(found: Findings) -> str:
    """Return the page as HTML."""
    rates, totals = found.units.rates(), found.units.totals
    bins = found.counts.scores.tolist()
    kinds = sorted(totals.errors.items(), key=lambda item: (-item[1], item[0]))
    return pages.render(
        "report.html",
        found=found,
        named=NAMED,
        rate=rate_text(np.median(rates)) if len(rates) else "–",
        errors=[(status, count, share_text(count, totals.rows)) for status, count in kinds],
        labels=_labels(found),
        labelled=sum(count for _, count in found.counts.labels.values()),
        scores=_columns(np.linspace(0, 1, SCORE_BINS + 1), bins, "{:.2f}".format) if any(bins) else [],
        low_scores=share_text(sum(bins[: SCORE_BINS // 2]), sum(bins)),
        times=list(_times(found)),
        charts=list(_charts(found)),
        setting_rows=list(_setting_rows(found)),
        version=version("shardlabel"),
        now=f"{_time(datetime.now(UTC).timestamp())} UTC",
    )


def _labels(found: Findings) -> list[tuple[str, int]]:
    labels = sorted(found.counts.labels.items(), key=lambda item: (-item[1][1], item[0]))
    names = [name for _, (name, _) in labels]
    # Some models have two classes with the same name: their numbers keep them apart.
    return [
        (f"{name} ({label_id})" if names.count(name) > 1 else name, count)
        for label_id, (name, count) in labels[:TOP_LABELS]
    ]


def _columns(edges: Any, heights: Iterable[float], name: Callable[[float], str]) -> list[tuple[str, float]]:  # noqa: ANN401
    """Return the name and the height of each column between two edges."""
    return [(f"{name(a)} to {name(b)}", height) for a, b, height in zip(edges, edges[1:], heights, strict=False)]


def _charts(found: Findings) -> Iterator[Chart]:
    units = found.units
    over_time = units.images_over_time(TIME_BINS)
    if over_time is not None:
        images, edges = over_time
        caption = "Images per second over the run, by the times of the part files (UTC)"
        values = [(_time(a), rate) for a, rate in zip(edges, images / np.diff(edges), strict=False)]
        yield caption, values, (_time(edges[0]), _time(edges[-1])), ("from", "images/s")
    seconds = units.seconds[units.done]
    if len(seconds) > 1:
        counts, edges = np.histogram(seconds, bins=DURATION_BINS, range=(0, max(float(seconds.max()), 1e-3)))
        ends = ("0", duration_text(edges[-1] / 2), duration_text(edges[-1]))
        yield "Units by the time they took", _columns(edges, counts, duration_text), ends, ("seconds", "units")


def _times(found: Findings) -> Iterator[tuple[str, str]]:
    units, last = found.units, found.summary
    seconds, rates = units.seconds[units.done], units.rates()
    if not len(seconds):
        return
    yield "Total work", f"{duration_text(float(seconds.sum()))}, summed over units"
    middle, late, most = map(duration_text, np.percentile(seconds, [50, 95, 100]))
    yield "Time per unit", f"median {middle}, 95 % under {late}, longest {most}"
    if len(rates):
        low, middle, high = map(rate_text, np.percentile(rates, [5, 50, 95]))
        yield "Images per second of a unit", f"median {middle}; 90 % of units from {low} to {high}"
    if last.get("images_now") and last.get("seconds"):
        images, took = float(last["images_now"]), float(last["seconds"])
        per_s = rate_text(images / took)
        yield (
            "Last run, with startup",
            f"{many_text(images, 'image')} in {duration_text(took)}: {per_s} images per second",
        )


def _setting_rows(found: Findings) -> Iterator[tuple[str, str]]:
    done, units = found.units.totals.units, found.plan.units
    yield "state", "finished" if found.finished else f"{done} of {units} units finished"
    names = {"artifact": "artifact SHA-256", "preprocessing": "preprocessing id"}
    for name, value in found.plan.settings.items():
        if value not in (None, [], False):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield names.get(name, name.replace(".", ": ")), text
    yield "destination", found.dest
    yield "shardlabel version", ", ".join(sorted(found.counts.versions)) or "unknown"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
