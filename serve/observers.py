"""What looks at the answers of a replica's models: their prediction logs, and how far their labels are from a baseline's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.inference.classifier import DeviceChoice
from pipeline.dest.fingerprint import class_names, file_metadata
from pipeline.dest.prediction_log import CLASS_NAMES_KEY
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.model.backend import Backend
from serve.model.drift import Baseline, Drift
from serve.model.observed import Observed
from serve.model.prediction_log import PredictionLog


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    model: str
    log: PredictionLog | None
    drift: Drift | None


class Observers(Collector):
    """The observers of one replica, and their metrics: register it with those of the replica.

    Args:
        config: Whether there is a prediction log, and of what.
        replica: This replica's name: a label of every series.
        baseline: What labels are compared with, in models that have its classes; None for no comparison.
    """

    def __init__(self, config: ServeConfig, replica: str, baseline: Baseline | None) -> None:
        self._config = config
        self._replica = replica
        self._baseline = baseline
        self._watched: list[_Watched] = []
        self._ending = threading.Lock()
        # What the logs of models have counted that are not there any more: by model, and by model and reason.
        self._written, self._lost = Counter[str](), Counter[tuple[str, str]]()

    def on(self, backend: Backend, choice: DeviceChoice) -> Backend:
        """Return a backend whose answers are looked at; the same one where nobody wants to. Opens the log's storage."""
        log = self._log(backend, choice)
        fits = self._baseline is not None and self._baseline.fits(backend.labels)
        drift = Drift(self._baseline, len(backend.labels)) if self._baseline is not None and fits else None
        observers = [observer for observer in (log, drift) if observer is not None]
        if not observers:
            return backend
        watched = _Watched(backend.spec.name, log, drift)
        self._watched.append(watched)
        return Observed(backend, observers, top_k=self._config.top_k if log else 1, end=partial(self._end, watched))

    def _log(self, backend: Backend, choice: DeviceChoice) -> PredictionLog | None:
        location = self._config.prediction_log
        if location is None:
            return None
        spec, decode = backend.spec, self._config.decode
        metadata = file_metadata(spec, choice, decode, backend.calibration)
        metadata[CLASS_NAMES_KEY] = class_names(backend.labels)
        artifact = spec.artifact(choice.precision).sha256
        return PredictionLog(
            open_storage(location),
            backend.labels,
            metadata,
            model=f"{spec.name}:{choice.arithmetic}:{decode.value}@{artifact[:8]}",
            shard=spec.name,
            top_k=self._config.top_k,
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, for Prometheus' client."""
        rows = CounterMetricFamily(
            "shardlabel_prediction_log_rows", "Rows written to the prediction log.", labels=("model", "replica")
        )
        dropped = CounterMetricFamily(
            "shardlabel_prediction_log_dropped",
            "Rows that the prediction log gave up.",
            labels=("model", "replica", "reason"),
        )
        with self._ending:
            written, lost, watched = self._written.copy(), self._lost.copy(), list(self._watched)
        for each in watched:
            _count(each, written, lost)
        for model, count in written.items():
            rows.add_metric((model, self._replica), count)
        for (model, reason), count in lost.items():
            dropped.add_metric((model, self._replica, reason), count)
        # Of several versions of a name the first, which is the one that is meant where none is named.
        drifts = list({each.model: each.drift for each in reversed(watched) if each.drift is not None}.items())
        yield from (family for family in (rows, dropped) if family.samples)
        if drifts:
            yield self._gauge("label_drift", "Stability index of labels.", ((m, d.index) for m, d in drifts))
            yield self._gauge("score_mean", "Mean best score.", ((m, d.mean_score) for m, d in drifts))
            yield self._gauge("baseline_score_mean", "The baseline's.", ((m, d.baseline_mean_score) for m, d in drifts))

    def _gauge(self, name: str, text: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(f"shardlabel_{name}", text, labels=("model", "replica"))
        for model, value in values:
            gauge.add_metric((model, self._replica), value)
        return gauge

    def _end(self, watched: _Watched) -> None:
        if watched.log is not None:
            watched.log.close()
        with self._ending:  # a count that falls for a moment is a restart to Prometheus
            self._watched.remove(watched)
            _count(watched, self._written, self._lost)

    def close(self) -> None:
        """Write the last rows of the logs."""
        for each in list(self._watched):
            if each.log is not None:
                each.log.close()


def _count(watched: _Watched, written: Counter[str], lost: Counter[tuple[str, str]]) -> None:
    if watched.log is not None:
        written[watched.model] += watched.log.rows
        lost.update({(watched.model, reason): count for reason, count in watched.log.dropped.items()})
