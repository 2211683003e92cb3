"""A request in flight, over HTTP or gRPC, and the parts of the endpoint that trace, count, time and log it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers

from serve import tracing
from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.bodies import BodyMemory, Held
from serve.http.keys import ApiKeys
from serve.metrics import ServeMetrics
from serve.model.outcomes import set_request_id
from serve.model.repository import Repository


@dataclass(frozen=True, slots=True)
class Extras:
    """What the endpoint has beside its models; every part may be left out."""

    metrics: ServeMetrics | None = None  # counts requests
    render_metrics: Callable[[], Awaitable[bytes]] | None = None  # gives the body of /metrics
    keys: ApiKeys | None = None  # checks the key of a request
    access_log: AccessLog | None = None  # has a line for each request
    memory: BodyMemory = field(default_factory=lambda: BodyMemory(ServeConfig().max_body_memory))  # of all bodies
    control: Repository | None = None  # loads and unloads models for callers; None where they may not ask for it


@dataclass(slots=True)
class InFlight:
    """A request in flight."""

    method: str  # of HTTP, or "gRPC"
    path: str  # as the log shows it
    route: str  # as the metrics call it: one of few names
    headers: Headers  # as sent; of gRPC, the metadata
    client: str | None  # its address, where that is known
    size: int | None  # bytes of the body; None where the headers do not say
    held: Held  # its share of the budget of bodies
    scheme: str = "http"  # of the URL, where no proxy says another
    model: str | None = None  # name of the model that it is for, once that is known
    status: int = (
        499  # HTTP's, over gRPC too; this one until there is an answer: the client of a cancelled request is gone
    )
    kind: str | None = "gone"  # of error; None without one
    began: float = field(default_factory=time.perf_counter)

    def span(self) -> tuple[str, dict[str, str]]:
        """Return the name and the attributes of its span."""
        scheme = self.headers.get("x-forwarded-proto", self.scheme)
        about = {"http.request.method": self.method, "http.route": self.route, "url.path": self.path}
        return f"{self.method} {self.route}", {**about, "url.scheme": scheme}

    def code(self) -> dict[str, int | str]:
        """Return the status as an attribute of its span."""
        return {"http.response.status_code": self.status}


@contextmanager
def observed(extras: Extras, request: InFlight) -> Iterator[None]:
    """Trace, count, time and log a request for the time of a block; then give back what it holds."""
    metrics, headers = extras.metrics, request.headers
    if metrics is not None:
        metrics.in_flight.inc()
    request_id = headers.get("x-request-id", "")
    set_request_id(request_id)
    with tracing.request(request.span, headers):
        try:
            yield
        finally:
            request.held.close()
            seconds = time.perf_counter() - request.began
            tracing.answered(request.status, request.kind, request.code())
            if metrics is not None:
                metrics.in_flight.dec()
                metrics.request(request.route, request.status, seconds, request.kind, request.model)
            if extras.access_log is not None:
                line: dict[str, Any] = {"client": request.client, "method": request.method, "path": request.path}
                line |= {"status": request.status, "ms": round(1000 * seconds, 2), "bytes": request.size}
                more = {"trace_id": tracing.trace_id(headers), "error": request.kind}
                line |= {"request_id": request_id} | {name: value for name, value in more.items() if value}
                extras.access_log.add(**line)
