"""What the endpoint counts, for Prometheus: one set per replica, written on its event loop.

Every series carries the replica's name. Behind one address any replica may be the one that is asked, so each publishes
its own (`serve.metrics.all_replicas`) and any one answers with all of them; Prometheus adds up what it wants added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from serve.model.batcher import Item

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class ServeMetrics:
    """One replica's metrics.

    Args:
        model: The label `model` of every series while there is one model only; else "", and each names its own.
        replica: This replica's name: a label of every series.
    """

    def __init__(self, model: str, replica: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of the lines, which nobody reads
        self.registry = CollectorRegistry()
        common = ("model", "replica")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"shardlabel_{name}", text, (*common, *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"shardlabel_{name}", text, (*common, *labels), registry=self.registry, buckets=buckets)

        self._model, self._replica = model, replica
        self._shown: set[str] = set()
        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._errors = counter("errors", "Requests answered with an error.", "route", "kind")
        self._images = counter("images", "Images that a model was run on.")
        self._dropped = counter("dropped", "Images dropped since nobody waited for them.", "reason", "before")
        self._seconds = histogram("request_seconds", "From a request's head to its answer.", _STAGE_BUCKETS, "route")
        self._stages = histogram(
            "stage_seconds", "Each image's time in a stage; infer: the batch's.", _STAGE_BUCKETS, "stage"
        )
        self._batch = histogram("batch_size", "Images per inference.", _BATCH_BUCKETS)
        self._depth = Gauge("shardlabel_queue_depth", "Images that wait.", common, registry=self.registry)
        in_flight = Gauge("shardlabel_in_flight", "Requests begun and not answered.", common, registry=self.registry)
        self.in_flight = in_flight.labels(model, replica)
        self._logged = counter("prediction_log_rows", "Rows written to the prediction log.")
        self._not_logged = counter("prediction_log_dropped", "Rows that the prediction log gave up.", "reason")
        self._drift = {
            attribute: Gauge(f"shardlabel_{name}", text, common, registry=self.registry)
            for attribute, name, text in (
                ("index", "label_drift", "Stability index of labels."),
                ("mean_score", "score_mean", "Mean best score."),
                ("baseline_mean_score", "baseline_score_mean", "The baseline's."),
            )
        }
        # Looking a labelled series up takes longer than adding to it, and there are few.
        self._known: dict[tuple[Any, ...], Any] = {}

    def show_models(self, models: Sequence[str], queued: Callable[[str], int]) -> None:
        """Show the models that there are now, with their series from the start; what others have counted stays.

        Args:
            models: Their names; beside that of another, no series is of one model that does not name it.
            queued: Gives the number of images that wait for a model.
        """
        for model in self._shown - {*models}:
            self._depth.remove(model, self._replica)
        for model in {*models} - self._shown:
            if model != self._model:
                self._model = ""
            self._depth.labels(model, self._replica).set_function(partial(queued, model))
            self._series(self._images, model)
            self._series(self._batch, model)
            for stage in ("decode", "queue", "infer"):
                self._series(self._stages, model, stage)
        self._shown = {*models}

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

    def logged(self, model: str, rows: int) -> None:
        """Count rows of a model's answers that were written to the prediction log; from any thread."""
        self._series(self._logged, model).inc(rows)

    def not_logged(self, model: str, reason: str, rows: int) -> None:
        """Count rows of a model's answers that the prediction log gave up; from any thread."""
        self._series(self._not_logged, model, reason).inc(rows)

    def watch_drift(self, model: str, drift: object | None) -> None:
        """Show how far a model's labels are from a baseline, as the attributes of `drift` say; None shows it no more."""
        for attribute, gauge in self._drift.items():
            if drift is None:
                gauge.remove(model, self._replica)
            else:
                gauge.labels(model, self._replica).set_function(partial(getattr, drift, attribute))

    def _series(self, family: Any, model: str, *labels: str) -> Any:  # noqa: ANN401 (a counter or a histogram)
        key = (family, model, *labels)
        series = self._known.get(key)
        if series is None:
            series = self._known[key] = family.labels(model, self._replica, *labels)
        return series

    def render(self) -> bytes:
        """Return this replica's own series in Prometheus' text format."""
        return generate_latest(self.registry)
