"""Requests that cannot be answered as asked."""

from __future__ import annotations

import reprlib

from serve.http.asgi import Rejected

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


def malformed(message: str) -> Rejected:
    """Build the refusal of a request that breaks the protocol, or does not fit the model."""
    return Rejected(400, message)


def shown(value: object) -> str:
    """Show what a caller sent, briefly, however long it is."""
    return "nothing" if value is None else _BRIEF.repr(value)
