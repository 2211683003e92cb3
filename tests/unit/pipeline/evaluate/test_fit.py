"""A calibration fitted to labelled images: the temperature, the thresholds, and what the other half says of them."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import build_app
from models.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, parse_calibration
from models.errors import ConfigError, SourceError
from pipeline.evaluate.statistics import wilson, wilson_bounds
from pipeline.evaluate.temperature import Collector, Observed, fit_temperature, observe
from pipeline.evaluate.thresholds import Z95_ONE_SIDED, choose_thresholds, images_needed, lowest_score
from pipeline.sources.sample import Sample
from tests.support.tiny_model import colour_shards, write_tar


def softmax(logits, temperature=1.0):
    values = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return values / values.sum(axis=1, keepdims=True)


def observed_of(logits, truth, first: int = 0) -> Observed:
    samples = [Sample("a.tar", str(first + number), b"") for number in range(len(logits))]
    best = logits.argmax(axis=1).astype(np.int32)
    return observe(samples, truth.astype(np.int32), best, softmax(logits).astype(np.float32))


def drawn(images: int, classes: int, temperature: float, seed: int = 0):
    """Return logits, and true classes that are drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (images, classes))
    sums = softmax(logits, temperature).cumsum(axis=1)
    return logits, (rng.random((images, 1)) > sums).sum(axis=1)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, 0.6397, 1.0, 1.7, MAX_TEMPERATURE])
def test_scores_at_any_temperature_are_those_of_the_probabilities(classes, temperature):
    logits, truth = drawn(50, classes, 1.0)
    logits[:10, 0] += 12
    expected = softmax(logits, temperature)

    found = observed_of(logits, truth)

    np.testing.assert_allclose(np.exp(found.log_scores(temperature)), expected.max(axis=1), atol=2e-6)
    log_loss = -np.log(np.take_along_axis(expected, truth[:, None], axis=1)).mean()
    assert found.log_loss(temperature) == pytest.approx(log_loss, abs=1e-4)


def test_a_probability_of_zero_is_no_infinite_loss():
    found = observed_of(np.array([[0.0, 500.0]]), np.array([0]))

    assert np.isfinite(found.log_loss(1.0))
    assert found.log_scores(1.0) == pytest.approx([0.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_classes_were_drawn_with_is_found(temperature):
    found = fit_temperature(observed_of(*drawn(8000, 10, temperature)))

    assert found == pytest.approx(temperature, rel=0.05)
    assert found == round(found, 4)


def test_where_all_are_right_the_temperature_is_the_end_of_the_range():
    logits, _ = drawn(60, 5, 1.0)

    assert fit_temperature(observed_of(logits, logits.argmax(axis=1))) == MIN_TEMPERATURE
    assert fit_temperature(observed_of(logits, logits.argmin(axis=1))) == MAX_TEMPERATURE


def test_halves_have_nothing_in_common_and_depend_on_the_images_alone():
    logits, truth = drawn(301, 7, 1.0)
    whole = observed_of(logits, truth)
    forth, back = Collector(), Collector()
    for first in range(0, 301, 16):
        rows = np.arange(first, min(first + 16, 301))
        forth.add(whole.take(rows))
        back.add(whole.take(300 - rows))

    fitted, judging = forth.halves()

    assert [(half.digests == other.digests).all() for half, other in zip(forth.halves(), back.halves(), strict=True)]
    assert (len(fitted), len(judging)) == (151, 150)
    assert not set(fitted.digests.tolist()) & set(judging.digests.tolist())
    counts = [np.bincount(half.truth, minlength=7) for half in (fitted, judging)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


def test_of_very_many_images_a_bounded_number_is_kept_and_it_is_drawn_by_name():
    logits, truth = drawn(1000, 3, 1.0)
    whole, few, other_batches = observed_of(logits, truth), Collector(300), Collector(300)

    for first in range(0, 1000, 10):
        few.add(whole.take(np.arange(first, first + 10)))
        assert few.kept <= 300
    for first in range(0, 1000, 100):
        other_batches.add(whole.take(np.arange(900 - first, 1000 - first)))

    assert few.seen == 1000
    assert few.kept > 150
    kept = np.sort(np.concatenate([half.digests for half in few.halves()]))
    assert (kept == np.sort(np.concatenate([half.digests for half in other_batches.halves()]))).all()
    assert (kept == np.sort(whole.digests)[: len(kept)]).all()


def test_bounds_are_wilsons():
    right, images = np.array([0, 3, 50, 52]), np.array([1, 4, 52, 52])

    lower, upper = wilson_bounds(right, images, Z95_ONE_SIDED)

    for number in range(4):
        assert (lower[number], upper[number]) == wilson(int(right[number]), int(images[number]), Z95_ONE_SIDED)


@pytest.mark.parametrize(("target", "images"), [(0.5, 3), (0.8, 11), (0.95, 52), (0.99, 268)])
def test_so_many_images_show_a_precision_when_all_are_right(target, images):
    assert images_needed(target) == images
    assert wilson(images, images, Z95_ONE_SIDED)[0] >= target > wilson(images - 1, images - 1, Z95_ONE_SIDED)[0]


def test_the_lowest_score_is_the_last_whose_bound_reaches_the_target():
    scores = np.linspace(1.0, 0.5, 101)
    right = np.ones(101, np.bool_)
    right[80:] = False

    found = lowest_score(scores, right, 0.9)

    last = max(m for m in range(1, 102) if wilson(min(m, 80), m, Z95_ONE_SIDED)[0] >= 0.9)
    assert (found.accepted, found.right, found.images) == (last, 80, 101)
    assert found.threshold == pytest.approx(scores[last - 1], abs=1e-6)
    assert found.threshold <= scores[last - 1]
    assert found.lower_bound == pytest.approx(wilson(80, last, Z95_ONE_SIDED)[0], abs=1e-6)


def test_images_of_one_score_are_accepted_together_or_not_at_all():
    scores, right = np.repeat([0.9, 0.8], 60), np.ones(120, np.bool_)
    right[60:90] = False

    assert lowest_score(scores, right, 0.9).accepted == 60
    assert lowest_score(np.full(120, 0.9), right, 0.9).threshold is None


@pytest.mark.parametrize("images", [0, 1, 51])
def test_too_few_images_have_no_threshold(images):
    found = lowest_score(np.ones(images), np.ones(images, np.bool_), 0.95)

    assert (found.threshold, found.images, found.accepted) == (None, images, 0)


def test_a_class_of_enough_images_has_a_threshold_of_its_own_and_the_rest_is_pooled():
    # 0 is always right; 1 is right half of the time, and as sure; 2 is mostly right; 3 is right, and has few images.
    best = np.repeat(np.array([0, 1, 2, 3], np.int32), [100, 60, 2000, 20])
    scores = np.linspace(0.99, 0.6, len(best))[np.random.default_rng(0).permutation(len(best))]
    right = np.ones(len(best), np.bool_)
    right[100:160:2] = False
    right[160:2160:40] = False  # one in 40 of the third: enough for 95 %, and not for every score

    pooled, classes = choose_thresholds(best, scores, right, 0.95)

    assert list(classes) == [0, 2]
    assert classes[0].threshold == pytest.approx(scores[:100].min(), abs=1e-6)
    assert classes[2].threshold is not None
    assert (pooled.threshold, pooled.images) == (None, 80)  # no precision of 95 % in what is left


def test_a_class_that_refutes_the_pooled_threshold_is_never_accepted_and_one_of_few_images_is_not_judged():
    best = np.repeat(np.array([1, *range(2, 42), 99], np.int32), [60, *[50] * 40, 5])
    right = np.ones(len(best), np.bool_)
    right[:60:4] = False
    right[-5:] = False
    scores = np.full(len(best), 0.9)

    pooled, classes = choose_thresholds(best, scores, right, 0.95)

    assert pooled.threshold == pytest.approx(0.9)
    assert pooled.images == 2065
    assert {one: found.threshold for one, found in classes.items()} == {1: None}


def noisy_shard(folder, images: int = 480, temperature: float = 2.0):
    """Write images of one colour each, whose classes are drawn from the tiny model's softmax at a temperature."""
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (images, 3))
    sums = softmax(10 * colours / 255, temperature).cumsum(axis=1)
    truth = (rng.random((images, 1)) > sums).sum(axis=1)
    members = {}
    for number, (colour, label) in enumerate(zip(colours.tolist(), truth.tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), tuple(colour)).save(buffer, "PNG")
        members |= {f"{number:03d}.png": buffer.getvalue(), f"{number:03d}.cls": str(label).encode()}
    members |= {"x.png": b"no image", "x.cls": b"1"}
    folder.mkdir(exist_ok=True)
    return write_tar(folder / "noisy.tar", members)


def run(*arguments):
    return CliRunner().invoke(build_app(), ["evaluate", *map(str, arguments)])


def test_a_fitted_file_calibrates_and_says_what_the_other_half_came_to(tiny_model, tmp_path):
    shard, file, page = noisy_shard(tmp_path / "s"), tmp_path / "c.json", tmp_path / "page.html"
    options = (shard, "--model", tiny_model, "--json")

    done = run(*options, "--fit", file, "--precision-target", 80, "--output", page)

    assert done.exit_code == 0, done.exception
    values = json.loads(done.stdout)
    calibration = parse_calibration(file.read_bytes(), "c.json")
    assert values["fit"]["calibration"] == json.loads(file.read_text())
    assert values["fit"]["sha256"] == calibration.sha256
    assert (calibration.model, calibration.precision, calibration.decode) == ("tiny", "fp32", "fast")
    assert (calibration.fitted_on, calibration.judged.images, calibration.precision_target) == (240, 240, 80.0)
    assert calibration.temperature == pytest.approx(2.0, rel=0.3)
    assert calibration.judged.error_after < calibration.judged.error_before
    assert calibration.judged.log_loss_after < calibration.judged.log_loss_before
    assert values["fit"]["coverage"] == pytest.approx(100 * calibration.judged.accepted / 240, abs=1e-3)
    assert str(tmp_path) not in file.read_text()
    text = page.read_text()
    assert "before calibration" in text
    assert f"{calibration.temperature:g}" in text

    again = tmp_path / "again.json"
    run(*options, "--fit", again, "--precision-target", 80)
    assert again.read_bytes() == file.read_bytes()

    once_more = run(*options, "--calibration", file, "--output", page)
    calibrated = json.loads(once_more.stdout)
    assert re.search(rf"wrote {page} \([^,]+\)$", done.stderr, re.MULTILINE)
    assert re.search(rf"wrote {page} \(.+, replaced\)$", once_more.stderr, re.MULTILINE)
    assert "accepts" in page.read_text()
    assert (calibrated["top1"], calibrated["confusions"]) == (values["top1"], values["confusions"])
    assert calibrated["calibration_error"] < values["calibration_error"]
    assert calibrated["accepted"]["target"] == 80.0
    assert calibrated["accepted"]["coverage"] > 0
    assert {"fit", "accepted"} & set(json.loads(run(*options).stdout)) == set()


def test_the_terminal_says_it_in_words(tiny_model, tmp_path):
    shard, file = noisy_shard(tmp_path / "s"), tmp_path / "c.json"

    fitted = run(shard, "--model", tiny_model, "--fit", file).stdout
    calibrated = run(shard, "--model", tiny_model, "--calibration", file).stdout

    assert "Calibration, fitted to 240 images and measured on 240 others" in fitted
    assert "scores become less confident, and no label changes" in fitted
    assert "at a precision of 95 %" in fitted
    assert "the calibration, for a precision of 95 %, accepts" in calibrated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision-target", "95"], "--precision-target is for --fit: give both, or neither"),
        (["--fit", "{}/c.json", "--precision-target", "100"], "in percent, above 0 and below 100, got 100"),
        (["--fit", "{}/c.json", "--precision-target", "0"], "in percent, above 0 and below 100, got 0"),
        (["--fit", "{}/c.json", "--precision-target", "nan"], "in percent, above 0 and below 100, got nan"),
        (
            ["--fit", "{}/c.json", "--compare", "fast", "exact"],
            "--fit is for one uncalibrated model, and --compare measures two",
        ),
        (["--fit", "{}/c.json", "--calibration", "x"], "--calibration has calibrated the scores already: give one"),
        (
            ["--calibration", "x", "--compare", "fast", "exact"],
            "--calibration is for one variant, and --compare measures two",
        ),
        (["--fit", "{}"], "that is a folder"),
        (["--fit", "{}/a/c.json"], "there is no folder"),
        (
            ["--calibration", "{}/none.json"],
            "none.json: there is no such file; `shardlabel evaluate SOURCE --fit` writes",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_model, tmp_path, options, message):
    colour_shards(tmp_path / "s", shards=1, samples=3)

    done = run(tmp_path / "s", "--model", tiny_model, *(option.replace("{}", str(tmp_path)) for option in options))

    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "c.json").exists()


def test_too_few_images_are_refused(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=49)

    done = run(tmp_path / "s", "--model", tiny_model, "--fit", tmp_path / "c.json")

    assert isinstance(done.exception, SourceError)
    assert "SOURCE has 49 images with a class that can be decoded, but at least 50 are needed" in str(done.exception)
    assert not (tmp_path / "c.json").exists()


def test_where_nothing_can_be_told_that_is_said(tiny_model, tmp_path):
    colour_shards(tmp_path / "s", shards=1, samples=60)

    done = run(tmp_path / "s", "--model", tiny_model, "--fit", tmp_path / "c.json")

    assert "temperature 0.25 is an end of the range searched" in done.stdout
    assert "no image is accepted at a precision of 95 %" in done.stdout
    assert (
        "a class needs 52 images with its label, and none has more than 10; all classes accept no score" in done.stdout
    )
