"""Which trace a request belongs to."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from serve import tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def trace_of(*traceparents: str) -> str | None:
    return tracing.trace_id(Headers(raw=[(b"traceparent", value.encode()) for value in traceparents]))


@pytest.mark.parametrize(
    "traceparent",
    [f"00-{TRACE}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-00\t", f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-new"],
)
def test_a_traceparent_names_the_trace(traceparent):
    assert trace_of(traceparent) == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE[:-1]}x-{SPAN}-01",
        f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
    ],
)
def test_a_malformed_one_is_ignored(traceparent):
    assert trace_of(traceparent) is None


def test_none_and_several_name_none():
    assert trace_of() is None
    assert trace_of(*[f"00-{TRACE}-{SPAN}-01"] * 2) is None
