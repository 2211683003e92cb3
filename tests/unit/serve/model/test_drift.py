"""How far labels are from a baseline's: no distance where there is none, and a number where there is."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from models.errors import ConfigError
from models.inference.classifier import choose
from models.spec import Precision
from pipeline.dest.fingerprint import class_names
from pipeline.dest.prediction_log import begin_log
from pipeline.storage.storage import open_storage
from serve.config import ServeConfig
from serve.metrics import ServeMetrics
from serve.model import drift
from serve.model.drift import (
    LEAST,
    WINDOW,
    Baseline,
    Drift,
    bins_of,
    read_baseline,
    stability_index,
)
from serve.model.outcomes import Labelled
from serve.model.prediction_log import PredictionLog
from serve.model.settled import Settled
from tests.support.fake_backend import FakeBackend


def answers(label_ids, score: float = 0.5) -> list[Labelled]:
    scores = np.array([score], np.float32)
    return [Labelled(1, 1, np.array([one], np.int32), scores) for one in np.asarray(label_ids).tolist()]


def baseline_of(counts: np.ndarray, mean_score: float = 0.5) -> Baseline:
    return Baseline({i: int(count) for i, count in enumerate(counts) if count}, mean_score, "names")


def drift_of(counts: np.ndarray, label_ids: np.ndarray) -> float:
    drift = Drift(baseline_of(counts), len(counts))
    drift(answers(label_ids))
    return drift.index


def test_the_index_is_the_one_of_the_books():
    # Two bins, 50:50 against 80:20: (0.8 - 0.5) ln(0.8 / 0.5) + (0.2 - 0.5) ln(0.2 / 0.5).
    assert stability_index(np.array([50_000, 50_000]), np.array([80_000, 20_000])) == pytest.approx(0.41589, abs=1e-4)
    assert stability_index(np.array([7, 0, 3]), np.array([7, 0, 3])) == 0
    assert math.isfinite(stability_index(np.array([1000, 0]), np.array([0, 1000])))


@pytest.mark.parametrize(("classes", "exponent"), [(3, 0.0), (1000, 0.0), (1000, 1.0), (20_000, 1.5)])
def test_chance_alone_stays_below_what_is_a_change(classes, exponent):
    """Of shares like 1 / rank ** exponent: the least answers that give a number, and a baseline of ten times as many."""
    random = np.random.default_rng(7)
    shares = random.permutation(np.arange(1, classes + 1.0) ** -exponent)
    shares /= shares.sum()
    found = [
        drift_of(random.multinomial(10 * LEAST, shares), random.choice(classes, LEAST, p=shares)) for _ in range(100)
    ]

    assert max(found) < 0.1


@pytest.mark.parametrize("classes", [3, 1000])
def test_a_half_of_the_answers_that_become_one_class_are_a_change(classes):
    random = np.random.default_rng(7)
    ids = random.integers(0, classes, 2 * LEAST)
    ids[:LEAST] = 1

    assert drift_of(np.full(classes, 30_000 // classes), ids) > 0.25


def test_bins_have_about_equal_shares_and_frequent_classes_their_own():
    counts = np.ones(1000, np.int64)
    counts[500] = 1000

    bins = bins_of(counts)

    assert (np.diff(bins) >= 0).all()
    assert (bins == bins[500]).sum() == 1
    shares = np.bincount(bins, counts)
    assert len(shares) <= 41
    assert max(np.delete(shares, bins[500])) <= 0.06 * counts.sum()
    assert bins_of(np.array([0, 990, 10])).tolist() == [0, 1, 2]


def test_only_the_last_answers_count_and_few_say_nothing():
    drift = Drift(baseline_of(np.array([500, 500]), mean_score=0.7), 2)
    drift(answers([0] * (LEAST - 1), score=0.25))
    assert math.isnan(drift.index)
    assert math.isnan(drift.mean_score)
    drift(answers([0], score=0.25))
    assert drift.index > 1
    assert drift.mean_score == 0.25

    drift(answers(np.arange(WINDOW) % 2, score=0.75))

    assert drift.index == pytest.approx(0, abs=1e-6)
    assert drift.mean_score == pytest.approx(0.75)
    assert drift.baseline_mean_score == 0.7


def logged(folder, images: list[bytes], baseline: Baseline | None = None) -> bytes:
    """Answer images with a log, and return the metrics."""
    begin_log(open_storage(str(folder)))
    config, backend = ServeConfig(model="efficientnet-lite0", prediction_log=str(folder)), FakeBackend(room=10**6)
    metrics = ServeMetrics("m", "r")
    choice = choose(backend.spec, config.device, Precision.INT8, has_gpu=False)
    backend.log = PredictionLog(config, Settled(backend.spec, choice, None), backend.labels, lambda *_: None)
    if baseline is not None:
        backend.drift = Drift(baseline, len(backend.labels))
    metrics.show_models([backend])
    asyncio.run(backend.label(images, top_k=1, deadline=time.monotonic() + 10))
    text = metrics.render()
    backend.close()
    metrics.show_models([])
    assert b"label_drift{" not in metrics.render()
    return text


def test_a_log_is_a_baseline_and_the_distance_from_it_is_a_metric(tmp_path):
    logged(tmp_path, [b"ab", b"abc"] * LEAST + [b"bad"])

    baseline = read_baseline(str(tmp_path), ("red", "green", "blue"))
    assert baseline == Baseline({0: LEAST, 2: LEAST}, 0.75, class_names(("red", "green", "blue")))
    values = dict(
        line.rsplit(" ", 1)
        for line in logged(tmp_path / "next", [b"abc"] * LEAST, baseline).decode().splitlines()
        if "drift{" in line or "score_mean{" in line
    )
    names = 'model="efficientnet-lite0",replica="r"'
    assert float(values[f"shardlabel_label_drift{{{names}}}"]) > 1
    assert float(values[f"shardlabel_score_mean{{{names}}}"]) == 0.75
    assert float(values[f"shardlabel_baseline_score_mean{{{names}}}"]) == 0.75


def test_a_baseline_that_says_nothing_about_the_model_is_refused(tmp_path):
    logged(tmp_path / "few", [b"abc"] * (LEAST - 1))
    with pytest.raises(ConfigError, match=f"holds {LEAST - 1} labelled rows, and at least {LEAST}"):
        read_baseline(str(tmp_path / "few"), ("red", "green", "blue"))

    logged(tmp_path / "other", [b"abc"] * LEAST)
    with pytest.raises(ConfigError, match="has other classes than the model"):
        read_baseline(str(tmp_path / "other"), ("cat", "dog"))


def test_errors_name_a_baseline_without_the_secret_in_its_uri(tmp_path, monkeypatch):
    logged(tmp_path, [b"ab"])
    place = "s3://key:W0RD@bucket/labels"
    monkeypatch.setattr(drift, "open_storage", lambda _: open_storage(str(tmp_path)))
    with pytest.raises(ConfigError, match="holds 1 labelled rows") as few:
        read_baseline(place)

    assert "W0RD" not in str(few.value)
