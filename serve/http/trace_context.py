"""The trace that a request belongs to, as W3C Trace Context names it: for the access log."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve import tracing

_propagator = TraceContextTextMapPropagator()


def trace_field(traceparents: Sequence[str]) -> dict[str, str]:
    """Return `{"trace_id": ...}`, 32 hexadecimal digits, for a line of the log; empty where the request has none.

    Args:
        traceparents: What the headers `traceparent` hold. Of several none is taken, as the standard says.
    """
    found = tracing.trace_id()
    if found is None and len(traceparents) == 1:
        sent = trace.get_current_span(_propagator.extract({"traceparent": traceparents[0]}, Context()))
        if sent.get_span_context().is_valid:
            found = trace.format_trace_id(sent.get_span_context().trace_id)
    return {} if found is None else {"trace_id": found}
