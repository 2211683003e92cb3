"""`evaluate --fit`: a calibration from labelled images; fitted to one half of them, and measured on the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from models.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, ClassThreshold, Judged
from models.errors import SourceError
from models.inference.predictions import Float32Array
from pipeline.evaluate.scoring import Variant
from pipeline.evaluate.statistics import Reliability, interval, percent
from pipeline.evaluate.temperature import Collector, Observed, fit_temperature
from pipeline.evaluate.thresholds import choose_thresholds, images_needed
from pipeline.quantities import count_text, many_text

MIN_IMAGES = 50


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration, and its figures on images that it was not fitted to. Rates in percent.

    Attributes:
        calibration: Content of the file.
        before: Bins of scores, with the share that is right, of the held-out half, without the calibration.
        after: The same bins with the calibration.
        coverage: Share of that half that is accepted.
        precision: Share of the accepted images that is right; None where none is accepted.
        precision_interval: Wilson's 95 % interval of the precision.
        images_needed: Images that a class needs for its own threshold.
        most_images: Most images of the fitted half that have the same best label.
        seen: Images that could have been used; more than were kept if there were very many.
    """

    calibration: Calibration
    before: list[dict[str, float | int]]
    after: list[dict[str, float | int]]
    coverage: float
    precision: float | None
    precision_interval: tuple[float, float]
    images_needed: int
    most_images: int
    seen: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = {name: value for name, value in asdict(self).items() if name != "calibration"}
        return {**values, "calibration": self.calibration.model_dump(mode="json"), "sha256": self.calibration.sha256}

    def sentences(self) -> list[str]:
        """Return the result in sentences, beside the figures."""
        return [self._temperature(), self._accepted(), self._thresholds(), *self._drawn()]

    def _temperature(self) -> str:
        temperature = self.calibration.temperature
        if temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE):
            return (
                f"temperature {temperature:g} is an end of the range searched: with few images, or where nearly all of them "
                "are right or wrong, no temperature fits best; give more and harder images"
            )
        sure = "less" if temperature > 1 else "more"
        return f"temperature {temperature:g}: scores become {sure} confident, and no label changes"

    def _accepted(self) -> str:
        target = f"{self.calibration.precision_target:g} %"
        if self.precision is None:
            return (
                f"no image is accepted at a precision of {target}: too few images to show that, or it is out of reach"
            )
        low, high = self.precision_interval
        return (
            f"accepted at a precision of {target}: {self.coverage:.1f} % of the images (coverage), of which "
            f"{self.precision:.1f} % are right (95 %: {low:.1f} to {high:.1f})"
        )

    def _thresholds(self) -> str:
        c = self.calibration
        pooled = "accept no score" if c.pooled.threshold is None else f"share the threshold {c.pooled.threshold:g}"
        if not c.classes and self.most_images >= self.images_needed:
            return f"thresholds: no class shows the precision by itself; all classes {pooled}"
        if not c.classes:
            return (
                f"too few images for thresholds by class: a class needs {self.images_needed} images with its label, and "
                f"none has more than {self.most_images}; all classes {pooled}"
            )
        own = sum(one.threshold is not None for one in c.classes)
        rest = c.num_classes - len(c.classes)
        return (
            f"thresholds: {many_text(own, 'class has its own', 'classes have their own')}, "
            f"{many_text(len(c.classes) - own, 'is', 'are')} never accepted, and the other {count_text(rest)}, whose images "
            f"show too little, {pooled}"
        )

    def _drawn(self) -> list[str]:
        used = self.calibration.fitted_on + self.judged.images
        if self.seen == used:
            return []
        return [f"of {count_text(self.seen)} images {count_text(used)} were used, drawn by a hash of their names"]

    @property
    def judged(self) -> Judged:
        """Figures of the held-out half, as in the file."""
        assert self.calibration.judged is not None, "fit_calibration judges it"
        return self.calibration.judged


def fit_calibration(variant: Variant, collector: Collector, target: float) -> Fit:
    """Fit a calibration.

    Args:
        variant: The loaded variant that labelled the images.
        collector: What was kept of the images.
        target: Precision among accepted images, percent.

    Raises:
        SourceError: There are too few images.
    """
    if collector.seen < MIN_IMAGES:
        raise SourceError(
            f"--fit: SOURCE has {many_text(collector.seen, 'image')} with a class that can be decoded, but at least "
            f"{MIN_IMAGES} are needed, half to fit to and half to measure on; thresholds need hundreds"
        )
    fitted, judging = collector.halves()
    temperature = fit_temperature(fitted)
    scores = np.exp(fitted.log_scores(temperature))
    pooled, classes = choose_thresholds(fitted.best, scores, fitted.right, target / 100)
    calibration = Calibration(
        model=variant.spec.name,
        precision=variant.choice.precision,
        artifact_sha256=variant.spec.artifact(variant.choice.precision).sha256,
        decode=variant.mode,
        preprocessing=variant.spec.preprocessing_id,
        num_classes=len(variant.classes),
        temperature=temperature,
        precision_target=target,
        fitted_on=len(fitted),
        pooled=pooled,
        classes=tuple(
            ClassThreshold(id=i, label=variant.classes[i].name, **found.model_dump()) for i, found in classes.items()
        ),
        created_by=f"shardlabel {version('shardlabel')}",
    )
    judged, before, after = _judge(calibration, judging)
    return Fit(
        calibration=calibration.model_copy(update={"judged": judged}),
        before=before.bins(),
        after=after.bins(),
        coverage=percent(judged.accepted, judged.images),
        precision=percent(judged.right, judged.accepted) if judged.accepted else None,
        precision_interval=interval(judged.right, judged.accepted),
        images_needed=images_needed(target / 100),
        most_images=int(np.bincount(fitted.best).max()),
        seen=collector.seen,
    )


def _judge(calibration: Calibration, judging: Observed) -> tuple[Judged, Reliability, Reliability]:
    """Return a calibration's figures on images that it was not fitted to, and their scores before and after it."""
    temperature = calibration.temperature
    before, after = Reliability(), Reliability()
    for found, at in ((before, 1.0), (after, temperature)):
        found.add(_scores(judging, at), judging.right)
    accepted = calibration.accepts(judging.best, _scores(judging, temperature))
    judged = Judged(
        images=len(judging),
        error_before=round(before.error, 6),
        error_after=round(after.error, 6),
        log_loss_before=round(judging.log_loss(1.0), 6),
        log_loss_after=round(judging.log_loss(temperature), 6),
        accepted=int(accepted.sum()),
        right=int(judging.right[accepted].sum()),
    )
    return judged, before, after


def _scores(observed: Observed, temperature: float) -> Float32Array:
    return np.exp(observed.log_scores(temperature)).astype(np.float32)
