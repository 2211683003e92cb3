"""The trace that a request belongs to, as W3C Trace Context names it: for the access log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serve import tracing

# Version, trace, span and flags. A later version than 00 may have more behind them.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id(traceparents: Sequence[str]) -> str | None:
    """Return the trace id of a request, 32 hexadecimal digits; None where it has none, or a malformed one.

    Args:
        traceparents: What the headers `traceparent` hold. Of several none is taken, as the standard says.
    """
    if len(traceparents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(traceparents[0].strip(" \t"))
    if found is None or (found[1] == "00" and found[3]):
        return None
    return found[2]


def trace_field(traceparents: Sequence[str]) -> dict[str, str]:
    """Return `{"trace_id": ...}` for a line of the log; empty where the request belongs to no trace."""
    found = tracing.trace_id() or trace_id(traceparents)
    return {} if found is None else {"trace_id": found}
