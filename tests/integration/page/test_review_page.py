"""The page of `shardlabel review sample` in a real Chromium, from a file: pictures, answers, and the list it saves."""

from __future__ import annotations

import csv
import time

import pytest

from pipeline.dest.plan import open_plan
from pipeline.review.draws import read_draws
from pipeline.review.output import write_draw, write_page
from pipeline.review.ranking import By
from pipeline.review.sample import Wanted, draw_sample
from pipeline.review.score import score_answers
from tests.support.tiny_dest import make_dest
from tests.support.tiny_model import colour_jpeg, write_tar

COUNT = "document.querySelector('.filter output').value"
SHOWN = "[...document.querySelectorAll('.sheet li')].filter(one => one.checkVisibility()).length"


@pytest.fixture
def dest(tmp_path, tiny_model):
    """Return a DEST of four images, the key of one of which is not kind to HTML, CSV or file systems."""
    (tmp_path / "in").mkdir()
    colours = {"a": "red", "d": "blue", 'b"><script>document.title=1</script>, ..,\n': "red", "c": "green"}
    members = {f"{key}.jpg": colour_jpeg(colour) for key, colour in colours.items()}
    write_tar(tmp_path / "in" / "x.tar", members)
    return make_dest(tmp_path, tiny_model)


@pytest.fixture
def review(chromium, dest, tmp_path):
    """Return a tab with the page of a draw of all."""
    plan = open_plan(dest)
    draw = draw_sample(dest, plan, Wanted(By.MARGIN, 10)).draw
    write_draw(write_page, dest, plan, draw, tmp_path / "look")
    chromium.look()
    chromium.load((tmp_path / "look" / "index.html").as_uri())
    yield chromium
    assert chromium.complaints == []


def click(page, number, value):
    page.evaluate(f"document.querySelector('#image-{number} button[value={value}]').click()")


def type_in(page, number, text):
    page.evaluate(
        f"(() => {{ const field = document.querySelector('#image-{number} input'); field.value = {text!r};"
        "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_pictures_are_shown_from_the_files_beside_the_page(review):
    review.wait_for("[...document.images].every(one => one.complete && one.naturalWidth === 20)")

    assert review.evaluate("document.images.length") == 4
    assert review.evaluate("document.title").startswith("Review 1 of")
    assert review.evaluate(COUNT) == "0 of 4 answered"


def test_answers_are_saved_as_the_list_that_score_reads(review, dest, tmp_path):
    review.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    click(review, 1, "right")
    click(review, 2, "none")
    type_in(review, 3, "blue")
    assert review.evaluate(COUNT) == "3 of 4 answered"
    states = review.evaluate("[...document.querySelectorAll('.sheet li')].map(one => one.dataset.state)")
    assert states == ["right", "wrong", "wrong", ""]

    review.evaluate("document.querySelector('[name=save]').click()")

    saved = tmp_path / "answers.csv"
    until = time.monotonic() + 10
    while not saved.exists() and time.monotonic() < until:
        time.sleep(0.05)
    draw = read_draws(dest, open_plan(dest))[0][0]
    with saved.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["shard", "key", "label"]
    assert [row[:2] for row in rows[1:]] == [[row.shard, row.key] for row in draw.rows]
    assert [row[2] for row in rows[1:]] == ["red", "none", "blue", ""]
    found = score_answers(dest, open_plan(dest), [saved], 0.95)
    assert [(one.name, one.right, one.answered) for one in found.classes] == [
        ("red", 1, 2),
        ("green", 0, 1),
        ("blue", 0, 0),
    ]


def test_answers_outlive_a_reload_and_answered_images_can_be_hidden(review):
    click(review, 1, "right")
    deadline = time.monotonic() + 10
    review.load(review.evaluate("location.href"))
    while review.evaluate(COUNT) != "1 of 4 answered":
        # Chromium writes what a page stores aside: one that is loaded within a moment may not find it yet.
        assert time.monotonic() < deadline
        time.sleep(0.2)
        review.load(review.evaluate("location.href"))

    review.evaluate(
        "(() => { const field = document.querySelector('[name=answered]'); field.value = 'hide';"
        "field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )

    assert review.evaluate(SHOWN) == 3


def test_without_script_the_list_is_pointed_to_and_no_answer_is_asked(review):
    review.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        review.load(review.evaluate("location.href"))

        assert review.evaluate(SHOWN) == 4
        assert not review.evaluate("document.querySelector('.answer').checkVisibility()")
        assert review.evaluate("document.querySelector('noscript .note').checkVisibility()")
    finally:
        review.call("Emulation.setScriptExecutionDisabled", value=False)
