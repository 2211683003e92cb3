"""A comparison as tables for a terminal, and as one HTML page with pictures that needs no other file."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from pipeline.diff.compare import Compared, DiffReport
from pipeline.diff.difference import Flip
from pipeline.html import pages
from pipeline.quantities import count_text, many_text, share_text


def print_diff(found: DiffReport, console: Console) -> None:
    """Print the figures."""
    console.print(f"OLD {found.old}: {found.old_model}\nNEW {found.new}: {found.new_model}", soft_wrap=True)
    for line in sentences(found):
        console.print(line, soft_wrap=True)
    if found.flips:
        title = f"flips, {_of(len(found.flips), found.flip_pairs)} pairs of classes"
        rows = [
            (one.old_label, one.new_label, one.images, share_text(one.images, found.flipped)) for one in found.flips
        ]
        _print(console, title, ("OLD", "NEW", "images", "of all flips"), rows)
    if found.statuses:
        rows = [
            (one.old_status, one.new_status, one.images, share_text(one.images, found.both)) for one in found.statuses
        ]
        _print(console, "other status", ("OLD", "NEW", "images", "of all"), rows)


def sentences(found: DiffReport) -> list[str]:
    """Return the differences in a few sentences."""
    only = f"{count_text(found.only_old)} in OLD only, {count_text(found.only_new)} in NEW only"
    lines = [f"{many_text(found.both, 'row')} in both, {only}"]
    for side, repeats in (("OLD", found.repeats_old), ("NEW", found.repeats_new)):
        if repeats:
            lines.append(f"{many_text(repeats, 'row')} of {side} left out: the last answer for an image counts")
    for side, some in (("OLD", found.only_old_first), ("NEW", found.only_new_first)):
        if some:
            lines.append(f"first row in {side} only: {some[0]}")
    if not found.both_labelled:
        return [*lines, "no row has a label in both"]
    by = " (compared by name: their classes are numbered differently)" if found.compared_by == "name" else ""
    lines.append(
        f"{share_text(found.same_label, found.both_labelled)} of {count_text(found.both_labelled)} labelled rows have the "
        f"same label, {count_text(found.flipped)} another one{by}"
    )
    if found.same_top_k is not None:
        lines.append(f"{found.same_top_k:.2f} % have the same classes among their top labels")
    shift = found.score_shift
    lines.append(
        f"scores shifted by {shift['mean']:+.4f} (mean) and {shift['median']:+.4f} (median); 90 % of them from "
        f"{shift['p5']:+.4f} to {shift['p95']:+.4f}"
    )
    return lines


def _of(some: int, all_of_them: int) -> str:
    return f"all {some}" if some == all_of_them else f"the first {some} of {count_text(all_of_them)}"


def _print(console: Console, title: str, columns: tuple[str, ...], rows: list[tuple[str, str, int, str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place > 1 else "left")
    for old, new, images, share in rows:
        table.add_row(old, new, count_text(images), share)
    console.print(table)


def build_page(
    found: Compared, flips: list[Flip], thumbnails: dict[tuple[int, int], bytes], problems: list[str]
) -> str:
    """Return the page as HTML.

    Args:
        found: The comparison.
        flips: Flips to show.
        thumbnails: Their pictures, JPEG by unit and position.
        problems: Why some pictures are missing.
    """
    shifts = [(f"{low:+.3f} to {high:+.3f}", images) for low, high, images in found.shifts]
    ends = (f"{found.shifts[0][0]:+.2f}", "0", f"{found.shifts[-1][1]:+.2f}") if found.shifts else ()
    return pages.render(
        "diff.html",
        found=found.report,
        sentences=sentences(found.report),
        shifts=shifts,
        ends=ends,
        flips=flips,
        thumbnails=thumbnails,
        problems=problems,
        version=version("shardlabel"),
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
