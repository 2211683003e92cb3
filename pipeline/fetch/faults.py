"""Why an image could not be had."""

from __future__ import annotations


class FetchError(Exception):
    """One try failed.

    Args:
        reason: Short; it becomes the row's error. Without the URI, which may hold a signature.
        again: Whether the same may work in a moment.
        wait_s: How long the host asked to wait.
    """

    def __init__(self, reason: str, *, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait_s = wait_s


class RefusedError(Exception):
    """No try is made, or no other: of what it is, not of how the host does.

    Args:
        status: Of the row.
        reason: Its error.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def too_large(size: int, most: int) -> RefusedError:
    """Return what says that an image has too many bytes, as of all formats."""
    return RefusedError("too_large", f"{size} bytes are more than the {most} allowed")
