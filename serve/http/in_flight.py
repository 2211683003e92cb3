"""A request in flight, over HTTP or gRPC, and the parts of the endpoint that trace, count, time and log it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers

from serve import tracing
from serve.http.access_log import AccessLog
from serve.http.bodies import BodyMemory, Held
from serve.http.keys import ApiKeys
from serve.metrics import ServeMetrics
from serve.model.outcomes import set_request_id
from serve.model.repository import Repository


@dataclass(frozen=True, slots=True)
class Extras:
    """What the endpoint has beside its models; every part may be left out.

    Attributes:
        metrics: Counts requests.
        render_metrics: Gives the body of /metrics; awaited.
        keys: Checks the key of a request.
        access_log: Has a line for each request.
        memory: The budget of all bodies, where HTTP and gRPC share it.
        control: Loads and unloads models at callers' request; None where they may not ask for it.
    """

    metrics: ServeMetrics | None = None
    render_metrics: Callable[[], Any] | None = None
    keys: ApiKeys | None = None
    access_log: AccessLog | None = None
    memory: BodyMemory | None = None
    control: Repository | None = None


@dataclass(slots=True)
class InFlight:
    """A request in flight.

    Attributes:
        method: Of HTTP, or "gRPC".
        path: As the log shows it.
        route: As the metrics call it: one of few names.
        headers: As sent; of gRPC, the metadata.
        client: Address of the client, where it is known.
        size: Bytes of the body; None where the headers do not say.
        held: Its share of the budget of bodies.
        scheme: Of the URL, where no proxy says another.
        model: Name of the model that it is for, once that is known.
        status: HTTP status of the answer, over gRPC too. 499 until there is one: the client of a cancelled request is gone.
        kind: Name of the error; None without one.
        began: `time.perf_counter()` at its start.
    """

    method: str
    path: str
    route: str
    headers: Headers
    client: str | None
    size: int | None
    held: Held
    scheme: str = "http"
    model: str | None = None
    status: int = 499
    kind: str | None = "gone"
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
