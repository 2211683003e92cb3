"""What the endpoint counts, for Prometheus: one set per replica, written on its event loop, and those of all replicas.

Every series carries the replica's name. Behind one address any replica may be the one that is asked, so any one asks the
others and answers with all of them; Prometheus adds up what it wants added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from serve.model.batcher import Item

if TYPE_CHECKING:
    from serve.model.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
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
            return kind(f"shardlabel_{name}", text, ("model", "replica", *labels), registry=self.registry)

        seconds = partial(Histogram, buckets=_STAGE_BUCKETS)
        self._model, self._replica = model, replica
        self._requests = family(Counter, "requests", "Requests answered.", "route", "status")
        self._errors = family(Counter, "errors", "Requests answered with an error.", "route", "kind")
        self._images = family(Counter, "images", "Images that a model was run on.")
        self._dropped = family(Counter, "dropped", "Images dropped since nobody waited for them.", "reason", "before")
        self._seconds = family(seconds, "request_seconds", "From a request's head to its answer.", "route")
        self._stages = family(seconds, "stage_seconds", "Each image's time in a stage; infer: the batch's.", "stage")
        self._batch = family(partial(Histogram, buckets=_BATCH_BUCKETS), "batch_size", "Images per inference.")
        self.in_flight = family(Gauge, "in_flight", "Requests begun and not answered.").labels(model, replica)
        self._logged = family(Counter, "prediction_log_rows", "Rows written to the prediction log.")
        self._not_logged = family(Counter, "prediction_log_dropped", "Rows that the prediction log gave up.", "reason")
        self._queued = family(Gauge, "queue_depth", "Images that wait.")
        # By what a model's `Drift` calls it.
        self._drift = {
            "index": family(Gauge, "label_drift", "Stability index of labels."),
            "mean_score": family(Gauge, "score_mean", "Mean best score."),
            "baseline_mean_score": family(Gauge, "baseline_score_mean", "The baseline's."),
        }

    def show_models(self, models: Iterable[Engine]) -> None:
        """Show the models that there are now, with their series from the start; what others have counted stays."""
        for gauge in (self._queued, *self._drift.values()):
            gauge.clear()
        versions: dict[str, list[Engine]] = {}
        for engine in models:
            versions.setdefault(engine.spec.name, []).append(engine)
        for model, engines in versions.items():
            if model != self._model:
                self._model = ""
            for family in (self._images, self._batch):
                self._series(family, model)
            for stage in ("decode", "queue", "infer"):
                self._series(self._stages, model, stage)
            # What the models themselves tell, at each scrape.
            self._queued.labels(model, self._replica).set_function(partial(_queued, engines))
            # Of several versions the first is shown.
            if drift := next((engine.drift for engine in engines if engine.drift is not None), None):
                for attribute, gauge in self._drift.items():
                    gauge.labels(model, self._replica).set_function(partial(getattr, drift, attribute))

    def request(self, route: str, status: int, seconds: float, kind: str | None, model: str | None = None) -> None:
        """Count one answered request: seconds from its head to its answer, and the kind of its error, if any."""
        model = self._model or model or ""
        self._series(self._requests, model, route, str(status)).inc()
        self._series(self._seconds, model, route).observe(seconds)
        if kind is not None:
            self._series(self._errors, model, route, kind).inc()

    def batch(self, items: Sequence[Item], model: str) -> None:
        """Count what became of items of a model: those of one batch, or some that were dropped."""
        queue, decode = self._series(self._stages, model, "queue"), self._series(self._stages, model, "decode")
        for item in items:
            if item.taken:
                queue.observe(item.taken - item.since)
            if item.decoded_at:
                decode.observe(item.decoded_at - item.taken)
            if item.dropped:
                self._series(self._dropped, model, *item.dropped).inc()
        if ran := next((item for item in items if item.batch), None):
            self._series(self._batch, model).observe(ran.batch)
            self._series(self._stages, model, "infer").observe(ran.done_at - ran.run_at)
            self._series(self._images, model).inc(ran.batch)

    def logged(self, model: str, reason: str | None, rows: int) -> None:
        """Count rows of a model's answers that the prediction log gave up for a reason, or wrote; from any thread."""
        series = self._series(self._not_logged, model, reason) if reason else self._series(self._logged, model)
        series.inc(rows)

    def _series(self, family: Any, model: str, *labels: str) -> Any:  # noqa: ANN401 (a counter or a histogram)
        return family.labels(model, self._replica, *labels)

    def render(self) -> bytes:
        """Return this replica's own series in Prometheus' text format."""
        return generate_latest(self.registry)


def _queued(engines: Sequence[Engine]) -> int:
    return sum(engine.queued for engine in engines)


def merged(texts: Iterable[bytes]) -> bytes:
    """Join expositions that have the same families: each family's head once, then everyone's samples."""
    families: dict[str, dict[str, None]] = {}
    for text in texts:
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
            families.setdefault(family, {})[line] = None
    return "".join(f"{line}\n" for lines in families.values() for line in lines).encode()
