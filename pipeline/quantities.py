"""Numbers as people read them: bytes, durations, shares and counts."""

from __future__ import annotations


def count_text(count: float) -> str:
    """Return a count with thousands separators.

    >>> count_text(1281167)
    '1,281,167'
    """
    return f"{round(count):,}"


def many_text(count: float, one: str, more: str | None = None) -> str:
    """Return a count with its noun.

    >>> many_text(2, "class", "classes")
    '2 classes'
    """
    return f"{count_text(count)} {one if count == 1 else more or one + 's'}"


def rate_text(value: float) -> str:
    """Return a number with three significant digits, or as an integer from 100 on.

    >>> rate_text(54.5678)
    '54.6'
    """
    return count_text(value) if value >= 100 or value == int(value) else f"{value:.3g}"


def bytes_text(size: float) -> str:
    """Return bytes in the largest decimal unit that leaves at least 1.

    >>> bytes_text(5_062_768)
    '5.1 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration in at most two units.

    >>> duration_text(5025)
    '1 h 23 min'
    """
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{seconds * 1000:.0f} ms"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole:02d} s" if minutes else f"{whole} s"


def share_text(part: float, whole: float) -> str:
    """Return a share in percent; a share above zero never reads as zero.

    >>> share_text(1, 100_000)
    'under 0.01 %'
    """
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "under 0.01 %"
    if 99.99 < percent < 100:
        return "over 99.99 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.2f} %"
