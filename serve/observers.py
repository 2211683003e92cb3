"""What looks at the answers of a replica's models: their prediction logs, and how far their labels are from a baseline's."""

from __future__ import annotations

from functools import partial

from models.inference.classifier import DeviceChoice
from pipeline.dest.fingerprint import class_names, file_metadata
from pipeline.dest.prediction_log import CLASS_NAMES_KEY
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.metrics.replica_metrics import ServeMetrics
from serve.model.drift import Baseline, Drift
from serve.model.engine import Engine
from serve.model.prediction_log import REASONS, PredictionLog


class Observers:
    """The observers of one replica.

    Args:
        config: Whether there is a prediction log, and of what.
        metrics: Count rows of the logs, and show how far labels are from the baseline.
        baseline: What labels are compared with, in models that have its classes; None for no comparison.
    """

    def __init__(self, config: ServeConfig, metrics: ServeMetrics, baseline: Baseline | None) -> None:
        self._config = config
        self._metrics = metrics
        self._baseline = baseline
        # By model; of several of a name, versions or one and its successor, the first is shown.
        self._drifts: list[tuple[str, Drift]] = []

    def on(self, backend: Engine, choice: DeviceChoice) -> None:
        """Have a backend's answers looked at, where anybody wants to. Opens the log's storage."""
        observers: list[Drift | PredictionLog] = []
        model = backend.spec.name
        if (location := self._config.prediction_log) is not None:
            observers.append(self._log(location, backend, choice))
            backend.observed_top_k = self._config.top_k
        if self._baseline is not None and self._baseline.fits(backend.labels):
            drift = Drift(self._baseline, len(backend.labels), end=lambda each: self._forget(model, each))
            self._drifts.append((model, drift))
            self._show(model)
            observers.append(drift)
        backend.observers = observers

    def _log(self, location: str, backend: Engine, choice: DeviceChoice) -> PredictionLog:
        spec, decode, metrics = backend.spec, self._config.decode, self._metrics
        metadata = file_metadata(spec, choice, decode, backend.calibration)
        metadata[CLASS_NAMES_KEY] = class_names(backend.labels)
        artifact = spec.artifact(choice.precision).sha256
        metrics.logged(spec.name, 0)
        for reason in REASONS:
            metrics.not_logged(spec.name, reason, 0)
        return PredictionLog(
            open_storage(location),
            backend.labels,
            metadata,
            model=f"{spec.name}:{choice.arithmetic}:{decode.value}@{artifact[:8]}",
            top_k=self._config.top_k,
            written=partial(metrics.logged, spec.name),
            dropped=partial(metrics.not_logged, spec.name),
        )

    def _show(self, model: str) -> None:
        self._metrics.watch_drift(model, next((drift for name, drift in self._drifts if name == model), None))

    def _forget(self, model: str, drift: Drift) -> None:
        self._drifts = [each for each in self._drifts if each[1] is not drift]
        self._show(model)
