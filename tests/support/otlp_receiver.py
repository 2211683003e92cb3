"""A minimal collector: receives OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Span:
    """One span as received; ids in hexadecimal, times in seconds."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begun: float
    ended: float
    is_error: bool
    about: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Receiver:
    url: str
    spans: list[Span] = field(default_factory=list)

    def of_trace(self, trace: str, count: int, seconds: float = 15.0) -> dict[str, Span]:
        """Wait for `count` spans of a trace, and return them by name."""
        deadline = time.monotonic() + seconds
        while len(found := [span for span in self.spans if span.trace == trace]) < count:
            assert time.monotonic() < deadline, f"of {count} spans only these arrived: {[span.name for span in found]}"
            time.sleep(0.02)
        named = {span.name: span for span in found}
        assert len(named) == len(found) == count, [span.name for span in found]
        return named


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


def _spans(body: bytes) -> Iterator[Span]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Span(
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                kind=span.kind,
                begun=span.start_time_unix_nano / 1e9,
                ended=span.end_time_unix_nano / 1e9,
                is_error=span.status.code == 2,
                about={pair.key: _value(pair.value) for pair in span.attributes},
                resource=resource,
            )


@contextlib.contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Receive until the block ends; `url` is the value for OTEL_EXPORTER_OTLP_ENDPOINT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            receiver.spans += _spans(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield receiver
        server.shutdown()
