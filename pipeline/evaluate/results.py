"""The figures of an evaluation, and of a comparison of two, and their form as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from models.spec import ReportedAccuracy
from pipeline.evaluate.fit import Fit


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Accuracy for one class of the model on SOURCE. Rates in percent."""

    id: int
    wnid: str | None
    name: str
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that were labelled as another."""

    id: int
    name: str
    label_id: int
    label: str
    images: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a given calibration accepts. Rates in percent.

    Attributes:
        target: Precision that its thresholds are for.
        coverage: Share of the images that is accepted.
        precision: Share of the accepted images that is right; None where none is accepted.
        precision_interval: Wilson's 95 % interval of the precision.
    """

    target: float
    coverage: float
    precision: float | None
    precision_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy of a model on a source. Rates in percent; intervals are Wilson's, 95 %.

    Attributes:
        images: Images with a class; one that could not be decoded counts as wrong.
        not_decoded: Those of them that could not be decoded.
        without_label: Samples left out because SOURCE gives no class for them.
        top1: Share of images whose best label is the true one.
        top5: Share of images whose true label is among the best five.
        reported_top1: Top-1 on ImageNet's validation images that the catalog's first source reports.
        reported_top5: The same source's top-5.
        reported: Every reported pair, with its source.
        reported_note: Why the pairs differ, where there are several.
        calibration_error: Expected calibration error of the best label's score.
        mean_score: Mean of that score: if it is above top1, the model is overconfident.
        calibration: The bins behind the calibration error.
        per_class: Every class with images in SOURCE.
        confusions: Pairs of classes, most often confused first.
        incomplete: Shards that could not be read completely.
        accepted: What the given calibration accepts.
        fit: The fitted calibration.
    """

    model: str
    precision: str
    decode: str
    images: int
    not_decoded: int
    without_label: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    reported_top1: float | None
    reported_top5: float | None
    reported: tuple[ReportedAccuracy, ...]
    reported_note: str | None
    calibration_error: float
    mean_score: float
    calibration: list[dict[str, float | int]]
    per_class: list[ClassAccuracy]
    confusions: list[Confusion]
    incomplete: list[str]
    seconds: float
    images_per_s: float
    accepted: Accepted | None = None
    fit: Fit | None = None

    @property
    def name(self) -> str:
        """Name of the variant: model, precision and decode mode."""
        return f"{self.model} {self.precision}, {self.decode} decode"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(replace(self, fit=None))
        values["reported"] = [pair.model_dump(mode="json") for pair in self.reported]
        if self.fit is not None:
            values["fit"] = self.fit.as_json()
        return {name: value for name, value in values.items() if value is not None or name not in ("accepted", "fit")}


@dataclass(frozen=True, slots=True)
class ChangedImage:
    """An image to which two variants give different labels."""

    key: str
    true: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants on the same images. Rates in percent.

    Attributes:
        a: The first.
        b: The second.
        agreement: Share of images with the same best label in both.
        only_a: Images that only the first gets right.
        only_b: Images that only the second gets right.
        mcnemar_p: Two-sided p value of McNemar's exact test that both are right equally often.
        changed: The first few images with different labels.
    """

    a: Evaluation
    b: Evaluation
    agreement: float
    only_a: int
    only_b: int
    mcnemar_p: float
    changed: list[ChangedImage]

    def as_json(self) -> dict[str, Any]:
        """Return plain values; the figures of the two variants are in "a" and "b"."""
        a, b = self.a.as_json(), self.b.as_json()
        own = {name: getattr(self, name) for name in ("agreement", "only_a", "only_b", "mcnemar_p")}
        changed = [asdict(one) for one in self.changed]
        difference = round(self.b.top1 - self.a.top1, 3)
        return {"images": self.a.images, **own, "top1_difference": difference, "changed": changed, "a": a, "b": b}
