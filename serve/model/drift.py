"""Whether the labels that are answered are still distributed as those of a baseline.

One number: the population stability index, sum of (p - q) ln(p / q) over bins of classes. Below 0.1 nothing has changed
that matters, above 0.25 it has, as the field reads it. Where nothing has changed chance alone makes it about
(bins - 1) (1 / answers + 1 / rows of the baseline): hence few bins, and no number before there are enough answers.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError
from pipeline.dest.fingerprint import class_names
from pipeline.dest.prediction_log import open_records
from pipeline.report.scan import count_parts
from pipeline.storage.storage import open_storage
from pipeline.storage.uris import without_secrets
from serve.model.outcomes import Labelled, Outcome

Int64Array = npt.NDArray[np.int64]

BINS = 20
# The answers that are compared, the last ones of each replica; with fewer than LEAST chance alone may reach 0.1.
WINDOW = 10_000
LEAST = 1_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """The labels of an earlier output: rows by class index, their mean score, and a hash of what classes are called."""

    counts: dict[int, int]
    mean_score: float
    class_names: str

    def fits(self, labels: tuple[str, ...]) -> bool:
        """Tell whether a model has these classes."""
        return self.class_names == class_names(labels)


def read_baseline(location: str, *labels: tuple[str, ...]) -> Baseline:
    """Count the labels of an output, finished or not, or of a prediction log, for models with these labels.

    Minutes for a billion rows.

    Raises:
        ConfigError: It holds rows of several sets of classes, or too few, or no model has its classes.
        SourceError, StorageError: It is no output, or cannot be read.
    """
    dest, name = open_storage(location), f"--baseline {without_secrets(location)}"
    plan, records = open_records(dest)
    counted = count_parts(dest, records)
    for why in counted.unreadable.values():
        raise ConfigError(f"{name}: {why}")
    counts = {label_id: count for label_id, (_, count) in counted.labels.items()}
    total = sum(counts.values())
    if total < LEAST:
        raise ConfigError(f"{name} holds {total} labelled rows, and at least {LEAST} say how labels are distributed")
    if (names := plan.settings.get("class names")) is None:
        raise ConfigError(f"{name} does not say what its classes are, or is of models with different ones")
    baseline = Baseline(counts, counted.score_sum / total, names)
    if not any(map(baseline.fits, labels)):
        raise ConfigError(f"{name} has other classes than the model, or calls them otherwise")
    return baseline


class Drift:
    """The last answers of one model, against a baseline of its classes."""

    def __init__(self, baseline: Baseline, num_classes: int) -> None:
        self.baseline_mean_score = baseline.mean_score
        counts = np.zeros(num_classes, np.int64)
        counts[list(baseline.counts)] = list(baseline.counts.values())
        self._bin_of = bins_of(counts)
        self._expected = np.bincount(self._bin_of, counts).astype(np.int64)
        self._last: deque[tuple[int, float]] = deque(maxlen=WINDOW)  # bin and score of each answer, in order

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of a request; on the event loop, in microseconds."""
        for outcome in outcomes:
            if isinstance(outcome, Labelled):
                self._last.append((self._bin_of[outcome.label_ids[0]], outcome.scores[0]))

    @property
    def index(self) -> float:
        """The population stability index; NaN before there are LEAST answers."""
        bins = [each for each, _ in self._last]
        found = np.bincount(np.array(bins, np.int64), minlength=len(self._expected))
        return stability_index(self._expected, found) if len(bins) >= LEAST else math.nan

    @property
    def mean_score(self) -> float:
        """Mean score of the best labels of the same answers; NaN before there are LEAST."""
        return statistics.fmean(score for _, score in self._last) if len(self._last) >= LEAST else math.nan


def bins_of(counts: Int64Array) -> Int64Array:
    """Divide classes into bins of about equal shares of the baseline, as deciles divide a number.

    Of few classes each has a bin; of many a frequent one has, and the others share one with their neighbours, which in
    most lists of classes are of their kind.

    Args:
        counts: int64 of shape (n_classes,): rows of the baseline.

    Returns:
        int64 of shape (n_classes,): the bin of each class, from 0 on, below 2 * BINS + 1.
    """
    if len(counts) <= BINS:
        return np.arange(len(counts))
    share = counts.sum() / BINS
    is_frequent = counts >= share
    filled = np.where(is_frequent, 0, counts).cumsum() // share  # how often the others have filled a bin
    begins = is_frequent | np.roll(is_frequent, 1) | (np.diff(filled, prepend=0) > 0)
    begins[0] = False
    return np.cumsum(begins, dtype=np.int64)


def stability_index(expected: Int64Array, found: Int64Array) -> float:
    """Return the population stability index of two counts by bin; half a row more in each, as none may be empty."""
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (found, expected))
    return float(((p - q) * np.log(p / q)).sum())
