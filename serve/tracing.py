"""Spans of OpenTelemetry: one for each request, and below it how long its images waited, were decoded and inferred.

On where OTEL_EXPORTER_OTLP_ENDPOINT is set in a replica's environment; the SDK's own variables set what is sampled, sent
and kept. Where Ray Serve traces too (its TracingConfig), these go where its spans go, as children of the replica's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.model.batcher import Item

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NO_SPAN = nullcontext()
_propagator = TraceContextTextMapPropagator()

# Of this process; None where it does not trace.
_tracer: trace.Tracer | None = None
# What `stop` ends.
_provider: TracerProvider | None = None


def is_wanted() -> bool:
    """Tell whether the environment asks for spans."""
    return any(map(os.environ.get, ENDPOINTS))


def problem() -> str | None:
    """Say why no span will be sent though the environment asks for it; None where there is no reason."""
    if not is_wanted():
        return None
    try:
        exporter = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        exporter = None
    if exporter is None:
        return f"no spans are sent to ${ENDPOINTS[1]}: its exporter is missing; pip install 'shardlabel[tracing]'"
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        return f"no spans are sent to ${ENDPOINTS[1]}: ${PROTOCOLS[1]} must be http/protobuf, got {protocol}"
    return None


def start(replica: str) -> None:
    """Trace from now on, by the name of this replica, if the environment asks for it."""
    global _tracer, _provider
    why_not = problem()
    if why_not is not None:
        logger.warning(why_not)
    elif is_wanted():
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):  # else Ray's
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            ours = Resource({"service.name": "shardlabel", "service.instance.id": replica})
            provider = _provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        _tracer = provider.get_tracer("shardlabel")


def stop() -> None:
    """Send what is left."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def http_request(scope: Mapping[str, Any], route: str, path: str) -> AbstractContextManager[object]:
    """Hold the span of a request over HTTP, of one of few routes, for the time of a block."""
    if _tracer is None:
        return _NO_SPAN
    sent = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    about = {
        "http.request.method": scope["method"],
        "http.route": route,
        "url.path": path,
        "url.scheme": dict(sent).get("x-forwarded-proto", scope.get("scheme", "http")),
    }
    return _begun(_tracer, f"{scope['method']} {route}", sent, about)


def grpc_call(path: str, metadata: Sequence[tuple[str, str]]) -> AbstractContextManager[object]:
    """Hold the span of a call of gRPC, by `/service/method` and what was sent with it, for the time of a block."""
    if _tracer is None:
        return _NO_SPAN
    method = path.removeprefix("/")
    return _begun(_tracer, method, metadata, {"rpc.system.name": "grpc", "rpc.method": method})


def _begun(
    tracer: trace.Tracer, name: str, sent: Sequence[tuple[str, str]], about: Mapping[str, str]
) -> AbstractContextManager[object]:
    # Of several the standard takes none. Where Ray traces, its span is the parent, and has this one as its own.
    has_one = [key for key, _ in sent].count("traceparent") == 1
    is_below_ray = trace.get_current_span().get_span_context().is_valid
    return tracer.start_as_current_span(
        name,
        context=_propagator.extract(dict(sent)) if has_one and not is_below_ray else None,
        kind=trace.SpanKind.SERVER,
        attributes=about,
        record_exception=False,
    )


def answered(status: int, error: str | None, about: Mapping[str, int | str]) -> None:
    """Note on the span of this request its status, as of HTTP, and the kind of its error; None where there was none."""
    if _tracer is None:
        return
    span = trace.get_current_span()
    span.set_attributes(about)
    if error is not None:
        span.set_attribute("error.type", error)
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)


def stages(items: Sequence[Item], model: str) -> None:
    """Add what the items of a request took, as far as they came: a span each, from the first begun to the last ended."""
    request = trace.get_current_span()
    if _tracer is None or not items or not request.is_recording():
        return
    about: dict[str, int | str] = {"shardlabel.model": model, "shardlabel.images": sum(item.weight for item in items)}
    request.set_attributes(about)
    now = time.monotonic()
    shift = time.time_ns() - time.monotonic_ns()
    for name, begin, end in (
        ("queue", "since", "taken"),
        ("decode", "taken", "decoded_at"),
        ("infer", "run_at", "done_at"),
    ):
        if name == "infer":
            about["shardlabel.batch_size"] = max(item.batch for item in items)
        # 0 is one that did not; one that was not taken has waited until now.
        begun = min(filter(None, (getattr(item, begin) for item in items)), default=0.0)
        ended = max(getattr(item, end) or (now if name == "queue" else 0.0) for item in items)
        if begun and ended:
            span = _tracer.start_span(name, attributes=about, start_time=int(begun * 1e9) + shift)
            span.end(int(ended * 1e9) + shift)


def trace_id() -> str | None:
    """Return the trace of the request that is being answered, 32 hexadecimal digits; None where there is none."""
    context = None if _tracer is None else trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context is not None and context.is_valid else None
