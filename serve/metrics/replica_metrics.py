"""What the endpoint counts, for Prometheus: one set per replica, written on its event loop.

Every series carries the replica's name. Behind one address any replica may be the one that is asked, so each publishes
its own (`serve.metrics.all_replicas`) and any one answers with all of them; Prometheus adds up what it wants added.
"""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily

from serve.model.batcher import Item

if TYPE_CHECKING:
    from serve.model.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
_COMMON = ("model", "replica")
# Attributes of a model's `Drift`, each with its metric and what that is.
_DRIFT = (
    ("index", "label_drift", "Stability index of labels."),
    ("mean_score", "score_mean", "Mean best score."),
    ("baseline_mean_score", "baseline_score_mean", "The baseline's."),
)
Family = TypeVar("Family", Counter, Gauge, Histogram)


class ServeMetrics:
    """One replica's metrics.

    Args:
        model: The label `model` of every series while there is one model only; else "", and each names its own.
        replica: This replica's name: a label of every series.
    """

    def __init__(self, model: str, replica: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of the lines, which nobody reads
        self.registry = CollectorRegistry()

        def family(kind: Callable[..., Family], name: str, text: str, *labels: str) -> Family:
            return kind(f"shardlabel_{name}", text, (*_COMMON, *labels), registry=self.registry)

        seconds = partial(Histogram, buckets=_STAGE_BUCKETS)
        self._model, self._replica = model, replica
        self._models: tuple[Engine, ...] = ()
        self._requests = family(Counter, "requests", "Requests answered.", "route", "status")
        self._errors = family(Counter, "errors", "Requests answered with an error.", "route", "kind")
        self._images = family(Counter, "images", "Images that a model was run on.")
        self._dropped = family(Counter, "dropped", "Images dropped since nobody waited for them.", "reason", "before")
        self._seconds = family(seconds, "request_seconds", "From a request's head to its answer.", "route")
        self._stages = family(seconds, "stage_seconds", "Each image's time in a stage; infer: the batch's.", "stage")
        self._batch = family(partial(Histogram, buckets=_BATCH_BUCKETS), "batch_size", "Images per inference.")
        in_flight = family(Gauge, "in_flight", "Requests begun and not answered.")
        self.in_flight = in_flight.labels(model, replica)
        self._logged = family(Counter, "prediction_log_rows", "Rows written to the prediction log.")
        self._not_logged = family(Counter, "prediction_log_dropped", "Rows that the prediction log gave up.", "reason")
        self.registry.register(self)
        # Looking a labelled series up takes longer than adding to it, and there are few.
        self._known: dict[tuple[Any, ...], Any] = {}

    def show_models(self, models: Iterable[Engine]) -> None:
        """Show the models that there are now, with their series from the start; what others have counted stays."""
        self._models = tuple(models)
        for model in {engine.spec.name for engine in self._models}:
            if model != self._model:
                self._model = ""
            self._series(self._images, model)
            self._series(self._batch, model)
            for stage in ("decode", "queue", "infer"):
                self._series(self._stages, model, stage)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what the models themselves tell, at each scrape."""
        queued: Sums[str] = Sums()
        for engine in self._models:
            queued[engine.spec.name] += engine.queued
        yield self._gauge("queue_depth", "Images that wait.", queued)
        # Of several versions of a model the first is shown.
        drifts = {engine.spec.name: engine.drift for engine in reversed(self._models) if engine.drift is not None}
        for attribute, name, text in _DRIFT:
            yield self._gauge(name, text, {model: getattr(drift, attribute) for model, drift in drifts.items()})

    def _gauge(self, name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(f"shardlabel_{name}", text, labels=_COMMON)
        for model, value in values.items():
            gauge.add_metric((model, self._replica), value)
        return gauge

    def request(self, route: str, status: int, seconds: float, kind: str | None, model: str | None = None) -> None:
        """Count one answered request.

        Args:
            route: Of few names.
            status: Of HTTP.
            seconds: From its head to its answer.
            kind: Names its error.
            model: That it was for; None for none.
        """
        model = self._model or model or ""
        self._series(self._requests, model, route, str(status)).inc()
        self._series(self._seconds, model, route).observe(seconds)
        if kind is not None:
            self._series(self._errors, model, route, kind).inc()

    def batch(self, items: Sequence[Item], model: str) -> None:
        """Count what became of items of a model: those of one batch, or some that were dropped."""
        model = self._model or model
        queue, decode = self._series(self._stages, model, "queue"), self._series(self._stages, model, "decode")
        for item in items:
            if item.taken:
                queue.observe(item.taken - item.since)
            if item.decoded_at:
                decode.observe(item.decoded_at - item.taken)
            if item.dropped:
                self._series(self._dropped, model, *item.dropped).inc()
        if ran := [item for item in items if item.batch]:
            self._series(self._batch, model).observe(ran[0].batch)
            self._series(self._stages, model, "infer").observe(ran[0].done_at - ran[0].run_at)
            self._series(self._images, model).inc(ran[0].batch)

    def logged(self, model: str, reason: str | None, rows: int) -> None:
        """Count rows of a model's answers that the prediction log gave up for a reason, or wrote; from any thread."""
        series = self._series(self._not_logged, model, reason) if reason else self._series(self._logged, model)
        series.inc(rows)

    def _series(self, family: Any, model: str, *labels: str) -> Any:  # noqa: ANN401 (a counter or a histogram)
        key = (family, model, *labels)
        series = self._known.get(key)
        if series is None:
            series = self._known[key] = family.labels(model, self._replica, *labels)
        return series

    def render(self) -> bytes:
        """Return this replica's own series in Prometheus' text format."""
        return generate_latest(self.registry)
