"""The page of `diff --output`: what differs, with pictures, in one HTML file that needs nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

from pipeline.diff.compare import Compared
from pipeline.diff.difference import Flip
from pipeline.diff.text import sentences
from pipeline.html import pages


def build_page(
    found: Compared, flips: list[Flip], thumbnails: dict[tuple[int, int], bytes], problems: list[str]
) -> str:
    """Return the page as HTML.

    Args:
        found: The comparison.
        flips: That are shown.
        thumbnails: Their pictures, JPEG by unit and position.
        problems: Why some are missing.
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
