"""The calibration file: what it says, when a label is accepted, and what is refused."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from models.calibration import Calibration, parse_calibration
from models.catalog import load_spec
from models.decode.mode import DecodeMode
from models.errors import ConfigError
from models.spec import Precision
from tests.support.calibrations import build_calibration


@pytest.fixture
def tiny(tiny_model):
    return load_spec(str(tiny_model))


@pytest.fixture
def calibration(tiny):
    return build_calibration(tiny, pooled=0.5, classes={0: 0.9, 2: None})


def test_a_class_has_its_own_threshold_or_the_pooled_one_and_may_never_be_accepted(calibration):
    ids = np.array([0, 0, 1, 1, 2, 2], np.int32)
    scores = np.array([0.9, np.nextafter(np.float32(0.9), np.float32(0)), 0.5, 0.499, 1.0, 0.0], np.float32)

    assert calibration.accepts(ids, scores).tolist() == [True, False, True, False, False, False]


def test_a_pooled_threshold_of_none_accepts_nothing(tiny):
    calibration = build_calibration(tiny, pooled=None, classes={1: 0.1})

    found = calibration.accepts(np.array([0, 1], np.int32), np.array([1, 1], np.float32))

    assert found.tolist() == [False, True]
    assert calibration.accepts(np.empty(0, np.int32), np.empty(0, np.float32)).shape == (0,)


def test_a_file_reads_back_as_what_was_written_and_its_hash_is_of_the_content(calibration):
    text = calibration.to_text()
    again = parse_calibration(text.encode(), "c.json")
    laid_out_otherwise = parse_calibration(json.dumps(json.loads(text), indent=7).encode(), "c.json")

    assert again == pickle.loads(pickle.dumps(calibration)) == calibration
    assert again.to_text() == text
    assert again.sha256 == laid_out_otherwise.sha256 == calibration.sha256
    assert calibration.model_copy(update={"temperature": 1.25}).sha256 != calibration.sha256


@pytest.mark.parametrize("change", ["temperature", "pooled", "classes", "precision_target", "judged", "created_by"])
def test_any_other_value_is_another_hash(calibration, change):
    values = json.loads(calibration.to_text())
    other: dict[str, Any] = {
        "temperature": 1.3, "pooled": {**values["pooled"], "threshold": 0.51}, "classes": [], "precision_target": 90.0,
        "judged": {**values["judged"], "accepted": 3}, "created_by": "another",
    }  # fmt: skip

    changed = parse_calibration(json.dumps({**values, change: other[change]}).encode(), "c.json")

    assert changed.sha256 != calibration.sha256


def changed(calibration: Calibration, **changes: Any) -> bytes:
    return json.dumps({**json.loads(calibration.to_text()), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is damaged or not a calibration: it is not JSON", id="empty"),
        pytest.param(b"\xff\xd8\xff", "it is not JSON", id="an image"),
        pytest.param(b"[" * 100_000, "it is not JSON", id="nested without end"),
        pytest.param(b"[1]", 'expected JSON with "format": "shardlabel-calibration"', id="no object"),
        pytest.param(b'{"temperature": 2}', "is not a calibration: expected JSON with", id="foreign"),
    ],
)
def test_what_is_no_calibration_is_refused_in_one_line(content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_calibration(content, "c.json")

    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--calibration c.json ")
    assert "make one with `shardlabel evaluate SOURCE --fit FILE`" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"version": 2}, "has version 2, this shardlabel reads version 1; use the shardlabel", id="new"),
        pytest.param({"version": "x" * 200}, 'has version "x{39}, this', id="version is no number"),
        pytest.param({"temperature": 0}, "is damaged: temperature: .*, got 0; make", id="temperature"),
        pytest.param({"temperature": float("nan")}, "is damaged: temperature: ", id="nan"),
        pytest.param({"temperature": "1.5"}, "is damaged: temperature: input should be a valid number", id="text"),
        pytest.param({"artifact_sha256": "abc"}, "is damaged: artifact_sha256: ", id="hash"),
        pytest.param({"surprise": 1}, "is damaged: surprise: extra inputs are not permitted", id="unknown key"),
        pytest.param(
            {"num_classes": 2}, "is damaged: the file: classes must be unique ids below 2", id="class beyond the model"
        ),
        pytest.param({"pooled": {}}, "is damaged: pooled.threshold: field required", id="incomplete"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong_with_it(calibration, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_calibration(changed(calibration, **changes), "c.json")

    assert "\n" not in str(caught.value)


def test_each_class_has_one_threshold(calibration):
    one = json.loads(calibration.to_text())["classes"][0]

    with pytest.raises(ConfigError, match="unique ids below 3, in ascending order"):
        parse_calibration(changed(calibration, classes=[one, one]), "c.json")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param({"model": "other"}, "model other, but this run uses model tiny", id="model"),
        pytest.param({"precision": "int8"}, "precision int8, but this run uses precision fp32", id="precision"),
        pytest.param({"decode": "exact"}, "decode mode exact, but this run uses decode mode fast", id="decode"),
        pytest.param({"artifact_sha256": "0" * 64}, "artifact 0{64}, but this run uses artifact", id="artifact"),
        pytest.param({"preprocessing": "0" * 16}, "preprocessing 0{16}, but this run uses", id="preprocessing"),
    ],
)
def test_a_calibration_of_anything_else_is_refused(tiny, calibration, change, what):
    calibration.check("c.json", tiny, Precision.FP32, DecodeMode.FAST)

    with pytest.raises(ConfigError, match=f"c.json was fitted for {what}") as caught:
        parse_calibration(changed(calibration, **change), "c.json").check(
            "c.json", tiny, Precision.FP32, DecodeMode.FAST
        )

    assert "--model tiny --precision fp32 --decode fast --fit FILE" in str(caught.value)
