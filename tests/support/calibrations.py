"""Calibrations in the form that `evaluate --fit` writes, with numbers chosen by a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.calibration import Calibration, ClassThreshold, Judged, Threshold
from models.catalog import load_labels, load_spec
from models.decode.mode import DecodeMode
from models.spec import ModelSpec, Precision

_COUNTS: dict[str, Any] = {"images": 100, "accepted": 60, "right": 60, "lower_bound": 0.95}


def build_calibration(
    spec: ModelSpec,
    *,
    temperature: float = 2.0,
    pooled: float | None = 0.5,
    classes: Mapping[int, float | None] | None = None,
    precision: Precision = Precision.FP32,
) -> Calibration:
    """Return a calibration for a model, with the given thresholds."""
    names = load_labels(spec)
    return Calibration(
        model=spec.name,
        precision=precision,
        artifact_sha256=spec.artifact(precision).sha256,
        decode=DecodeMode.FAST,
        preprocessing=spec.preprocessing_id,
        num_classes=len(names),
        temperature=temperature,
        precision_target=95.0,
        fitted_on=100,
        judged=Judged(
            images=100,
            error_before=0.1,
            error_after=0.05,
            log_loss_before=0.7,
            log_loss_after=0.6,
            accepted=60,
            right=59,
        ),
        pooled=Threshold(threshold=pooled, **_COUNTS),
        classes=tuple(
            ClassThreshold(id=i, label=names[i], threshold=value, **_COUNTS)
            for i, value in sorted((classes or {}).items())
        ),
        created_by="shardlabel tests",
    )


def write_calibration(path: Path, model: Path | str, **more: Any) -> Path:
    """Write a calibration for a model, and return its path."""
    path.write_text(build_calibration(load_spec(str(model)), **more).to_text())
    return path
