"""Why an image could not be fetched."""

from __future__ import annotations


class FetchError(Exception):
    """One try failed.

    Args:
        reason: Short; it becomes the row's error. Without the URI, which may hold a signature.
        again: Whether a retry may succeed.
        wait_s: How long the host asked to wait.
    """

    def __init__(self, reason: str, *, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait_s = wait_s


class RefusedError(Exception):
    """An image is refused without a retry, because of what it is and not of the state of its host.

    Args:
        status: Status of the row.
        reason: Error of the row.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def too_large(size: int, most: int) -> RefusedError:
    """Return the error for an image with too many bytes, the same as for all formats."""
    return RefusedError("too_large", f"{size} bytes are more than the {most} allowed")
