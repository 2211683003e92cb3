"""What the endpoint counts, for Prometheus: one set per replica, written on its event loop.

Every series carries the replica's name. Behind one address any replica may be the one that is asked, so each publishes
its own (`serve.metrics.all_replicas`) and any one answers with all of them; Prometheus adds up what it wants added.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from serve.model.batcher import BatchReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class ServeMetrics:
    """One replica's metrics.

    Args:
        model: The model's name: a label of every series.
        replica: This replica's name: likewise.
        queued: Gives the number of images that wait.
    """

    def __init__(self, model: str, replica: str, queued: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of the lines, which nobody reads
        self.registry = CollectorRegistry()
        common = ("model", "replica")
        names = {"model": model, "replica": replica}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"shardlabel_{name}", text, (*common, *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"shardlabel_{name}", text, (*common, *labels), registry=self.registry, buckets=buckets)

        self._names = names
        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._errors = counter("errors", "Requests answered with an error.", "route", "kind")
        self._images = counter("images", "Images that a model was run on.").labels(**names)
        self._dropped = counter("dropped", "Images dropped since nobody waited for them.", "reason", "before")
        self._seconds = histogram("request_seconds", "From a request's head to its answer.", _STAGE_BUCKETS, "route")
        stages = histogram(
            "stage_seconds", "Each image's time in a stage; infer: the batch's.", _STAGE_BUCKETS, "stage"
        )
        self._decode, self._queue, self._infer = (
            stages.labels(**names, stage=stage) for stage in ("decode", "queue", "infer")
        )
        self._batch = histogram("batch_size", "Images per inference.", _BATCH_BUCKETS).labels(**names)
        depth = Gauge("shardlabel_queue_depth", "Images that wait.", common, registry=self.registry)
        depth.labels(**names).set_function(queued)
        in_flight = Gauge("shardlabel_in_flight", "Requests begun and not answered.", common, registry=self.registry)
        self.in_flight = in_flight.labels(**names)
        # Looking a labelled series up takes longer than adding to it, and there are few.
        self._known_requests: dict[tuple[str, int], Counter] = {}
        self._known_seconds: dict[str, Histogram] = {}

    def request(self, route: str, status: int, seconds: float, kind: str | None) -> None:
        """Count one answered request; `kind` names its error."""
        series = self._known_requests.get((route, status))
        if series is None:
            series = self._requests.labels(**self._names, route=route, status=str(status))
            self._known_requests[route, status] = series
        series.inc()
        times = self._known_seconds.get(route)
        if times is None:
            times = self._known_seconds[route] = self._seconds.labels(**self._names, route=route)
        times.observe(seconds)
        if kind is not None:
            self._errors.labels(**self._names, route=route, kind=kind).inc()

    def batch(self, report: BatchReport) -> None:
        """Count what one batch took."""
        for seconds in report.queue_s:
            self._queue.observe(seconds)
        for seconds in report.decode_s:
            self._decode.observe(seconds)
        if report.size:
            self._batch.observe(report.size)
            self._infer.observe(report.infer_s)
            self._images.inc(report.size)
        for (reason, before), count in report.dropped.items():
            self._dropped.labels(**self._names, reason=reason, before=before).inc(count)

    def render(self) -> bytes:
        """Return this replica's own series in Prometheus' text format."""
        return generate_latest(self.registry)
