"""The samples of `shardlabel report`, filtered in a real Chromium, from a file and without a server."""

from __future__ import annotations

import json

import pytest

from pipeline.report.page import write_report
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import colour_jpeg, write_tar

SHOWN = (
    "[...document.querySelectorAll('.sheet li')].filter(one => one.checkVisibility()).map(one => ({...one.dataset}))"
)
COUNT = "document.querySelector('.filter output').value"


@pytest.fixture
def report(chromium, tmp_path, tiny_model):
    """Return a tab with the report of two red images, a green one and one that is empty."""
    (tmp_path / "in").mkdir()
    members = {"a.jpg": colour_jpeg("red"), "b.jpg": colour_jpeg("red"), "c.jpg": colour_jpeg("green"), "d.jpg": b""}
    write_tar(tmp_path / "in" / "x.tar", members)
    make_dest(tmp_path, tiny_model)
    write_report(str(tmp_path / "out"), str(tmp_path / "page.html"))
    chromium.look()
    chromium.load((tmp_path / "page.html").as_uri())
    yield chromium
    assert chromium.complaints == []


def fill_in(page, **values):
    """Fill in fields of the form as a person does; return what is shown then."""
    page.evaluate(
        f"Object.entries({json.dumps(values)}).forEach(([name, value]) => {{"
        "const field = document.forms[0].elements[name];"
        "field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})); })"
    )
    return page.evaluate(SHOWN)


def test_all_samples_are_shown_at_first(report):
    assert report.evaluate(COUNT) == "4 of 4 samples"
    assert len(report.evaluate(SHOWN)) == 4


def test_samples_are_filtered_by_label_status_and_score(report):
    assert sorted(one["label"] for one in fill_in(report, label=" RE ")) == ["green", "red", "red"]
    assert [one["label"] for one in fill_in(report, label="green")] == ["green"]
    assert report.evaluate(COUNT) == "1 of 4 samples"
    assert [one["status"] for one in fill_in(report, label="", status="empty")] == ["empty"]
    scores = sorted(float(one["score"]) for one in fill_in(report, status="ok"))
    assert [float(one["score"]) for one in fill_in(report, status="", least=scores[-1])] == [
        score for score in scores if score == scores[-1]
    ]
    assert fill_in(report, least="", most=scores[0] / 2) == []
    assert report.evaluate("[...document.querySelectorAll('.group')].every(one => !one.checkVisibility())")


def test_a_click_shows_all_again(report):
    assert len(fill_in(report, label="green")) == 1

    report.evaluate("document.querySelector('.filter button').click()")

    report.wait_for(f"{SHOWN}.length === 4")


def test_without_script_all_is_shown_and_no_form(report):
    report.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        report.load(report.evaluate("location.href"))

        assert len(report.evaluate(SHOWN)) == 4
        assert not report.evaluate("document.querySelector('.filter').checkVisibility()")
    finally:
        report.call("Emulation.setScriptExecutionDisabled", value=False)
