"""Spans of OpenTelemetry: one for each request, and below it how long its images waited, were decoded and inferred.

On where OTEL_EXPORTER_OTLP_ENDPOINT is set in a replica's environment; the SDK's own variables set what is sampled, sent
and kept. Where Ray Serve traces too (its TracingConfig), these go where its spans go, as children of the replica's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from serve.model.batcher import Item

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# Each stage, and the times of an item at which it begins and ends.
STAGES = (("queue", "since", "taken"), ("decode", "taken", "decoded_at"), ("infer", "run_at", "done_at"))
_propagator = TraceContextTextMapPropagator()

_tracer: trace.Tracer | None = None  # of this process; None where it does not trace
_provider: TracerProvider | None = None  # what `stop` ends


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
    why_not = f"no spans are sent to ${ENDPOINTS[1]}: "
    if exporter is None:
        return f"{why_not}its exporter is missing; pip install 'shardlabel[tracing]'"
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    return None if protocol == "http/protobuf" else f"{why_not}${PROTOCOLS[1]} must be http/protobuf, got {protocol}"


def start(replica: str) -> None:
    """Trace from now on, by the name of this replica, if the environment asks for it."""
    global _tracer, _provider
    if why_not := problem():
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


def request(named: Callable[[], tuple[str, Mapping[str, str]]], headers: Headers) -> AbstractContextManager[object]:
    """Hold the span of a request over HTTP or gRPC for the time of a block; `named` gives its name and attributes."""
    if _tracer is None:
        return nullcontext()
    name, about = named()
    # Where Ray traces, its span is the parent, and has this one as its own.
    context = None if trace.get_current_span().get_span_context().is_valid else _sent(headers)
    kind = trace.SpanKind.SERVER
    return _tracer.start_as_current_span(name, context, kind, attributes=about, record_exception=False)


def _sent(headers: Headers) -> Context:
    """Return the span that a caller names by W3C Trace Context; of several the standard takes none."""
    has_one = len(headers.getlist("traceparent")) == 1
    return _propagator.extract(headers, Context()) if has_one else Context()


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
    about: dict[str, int | str] = {"shardlabel.model": model, "shardlabel.images": len(items)}
    request.set_attributes(about)
    now, shift = time.monotonic(), time.time_ns() - time.monotonic_ns()
    for name, begin, end in STAGES:
        if name == "infer":
            about["shardlabel.batch_size"] = max(item.batch for item in items)
        # 0 is one that did not; one that was not taken has waited until now.
        begun = min(filter(None, (getattr(item, begin) for item in items)), default=0.0)
        ended = max(getattr(item, end) or (now if name == "queue" else 0.0) for item in items)
        if begun and ended:
            span = _tracer.start_span(name, attributes=about, start_time=int(begun * 1e9) + shift)
            span.end(int(ended * 1e9) + shift)


def trace_id(headers: Headers) -> str | None:
    """Return the trace of a request, 32 hexadecimal digits: of its span, or the one that its headers name, if any."""
    context = trace.get_current_span(_sent(headers) if _tracer is None else None).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
