"""The page at `/`, as people use it, in a real Chromium."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from models.spec import Precision
from tests.support.calibrations import build_calibration
from tests.support.page_server import KEY, PageServer, another_model
from tests.support.page_words import BEST, choose_sample

ROOT = Path(__file__).parents[3]


def ask(server: PageServer, image: bytes) -> dict[str, Any]:
    """Return what the endpoint answers to one image."""
    headers = {"Content-Type": "image/jpeg"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/classify", image, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as err:
        return json.load(err)


def test_a_sample_shows_its_five_best_labels_with_bars_and_scores(page, server, photographs):
    expected = ask(server, (photographs / "chelsea.jpg").read_bytes())["results"][0]

    choose_sample(page, "chelsea")
    page.wait_for("document.querySelector('.labels li:last-child i')?.style.transform")

    rows = page.evaluate(
        "[...document.querySelectorAll('.labels li')].map(row => ["
        "row.querySelector('.name').textContent, row.querySelector('.score').textContent,"
        "row.querySelector('.track').getBoundingClientRect(), row.querySelector('.track i').getBoundingClientRect()]"
        ".map(value => value.right ?? value))"
    )
    left = page.evaluate("document.querySelector('.track').getBoundingClientRect().left")
    assert [row[0] for row in rows] == [label["label"] for label in expected["labels"]]
    for (_, text, track, bar), label in zip(rows, expected["labels"], strict=True):
        assert float(text.removesuffix(" %")) == pytest.approx(label["score"] * 100, abs=0.051)
        assert (bar - left) / (track - left) == pytest.approx(label["score"], abs=0.01)
    card = page.evaluate("document.querySelector('.card').innerText")
    assert f"{expected['width']} × {expected['height']}" in card
    assert "chelsea.jpg" in card
    # The time that the page took, and the server's own account of it.
    assert re.search(r"\d ms · server \d[\d.]* ms$", card)


@pytest.mark.parametrize(("threshold", "words"), [(0.0, "accepted"), (None, "not accepted")])
def test_a_calibrated_model_says_whether_the_label_is_accepted(page, server, monkeypatch, threshold, words):
    calibration = build_calibration(server.engine.spec, pooled=threshold, precision=Precision.INT8)
    monkeypatch.setattr(server.engine, "calibration", calibration)

    choose_sample(page, "chelsea")
    page.wait_for("document.querySelector('.times')")

    assert page.evaluate("document.querySelector('.times').innerText").startswith(f"{words} · ")


def test_files_can_be_chosen(page, server, photographs):
    page.choose_files(photographs / "coffee.webp")

    page.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert server.asked == ["image/webp"]


def test_files_can_be_dropped_anywhere(page, photographs):
    page.drop_files(photographs / "coffee.webp")

    page.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert page.evaluate("document.body.className") == ""


def test_a_folder_can_be_dropped_and_the_images_in_it_are_labelled(page, server, photographs, tmp_path):
    (tmp_path / "trip" / "day").mkdir(parents=True)
    for name in ("trip/b.webp", "trip/day/c.webp", "trip/a.webp"):
        (tmp_path / name).write_bytes((photographs / "coffee.webp").read_bytes())
    (tmp_path / "trip" / "notes.txt").write_text("no image")

    page.drop_files(tmp_path / "trip")
    page.wait_for("document.querySelectorAll('.labels').length === 3")

    names = page.evaluate("[...document.querySelectorAll('.card h3')].map(head => head.textContent)")
    assert names == ["a.webp", "b.webp", "c.webp"]
    assert server.asked == ["image/webp"] * 3


def test_images_can_be_pasted(page):
    page.evaluate(
        "fetch('page/samples/coffee.webp').then(answer => answer.blob()).then(blob => { const data = new DataTransfer();"
        "data.items.add(new File([blob], 'image.png', {type: blob.type}));"
        "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); })"
    )

    page.wait_for(f"{BEST}?.textContent === 'espresso'")


def test_several_images_are_shown_in_their_order_and_a_bad_one_says_what_the_server_said(
    page, server, photographs, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photographs / "chelsea.jpg").read_bytes()[:5000])
    said = ask(server, broken.read_bytes())["error"]

    page.choose_files(photographs / "rocket.jpg", broken, photographs / "coffee.webp")
    page.wait_for("!document.querySelector('[aria-busy=true]')")

    cards = page.evaluate("[...document.querySelectorAll('.card')].map(card => card.innerText)")
    assert [card.splitlines()[0] for card in cards] == ["rocket.jpg", "broken.jpg", "coffee.webp"]
    assert "missile" in cards[0]
    assert said
    assert f"Not labelled\n{said}" in cards[1]
    assert "espresso" in cards[2]
    assert page.evaluate("document.getElementById('results-sum').textContent").startswith("3 images, median ")


def test_a_file_over_the_limit_is_not_sent(page, server, tmp_path):
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(1_200_000))

    page.choose_files(large)
    page.wait_for("document.querySelector('.wrong')")

    assert "1.1 MiB, and this server takes up to 1.0 MiB" in page.evaluate("document.querySelector('.wrong').innerText")
    assert server.asked == []


def test_a_busy_server_can_be_asked_again(page, server):
    server.busy = 1
    choose_sample(page, "coffee")
    page.wait_for("document.querySelector('.wrong')")
    assert "The server is busy\nthe queue is full; try again in 1 s" in page.evaluate(
        "document.querySelector('.wrong').innerText"
    )

    page.evaluate("document.querySelector('.card button').click()")

    page.wait_for(f"{BEST}?.textContent === 'espresso'")


def test_a_key_is_asked_for_once_used_and_kept_nowhere(page, server):
    server.wants_key = True
    choose_sample(page, "coffee")
    page.wait_for("document.activeElement.id === 'key'")
    assert "this endpoint wants a key" in page.evaluate("document.querySelector('.wrong').innerText")

    page.evaluate(f"document.getElementById('key').value = '{KEY}'")
    page.press("Enter")
    page.wait_for(f"{BEST}?.textContent === 'espresso'")
    choose_sample(page, "rocket")
    page.wait_for("document.querySelectorAll('.labels').length === 2")

    assert page.evaluate("document.getElementById('key-form').hidden")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept + page.evaluate("document.documentElement.outerHTML") + json.dumps(page.requests)


def test_a_wrong_key_is_asked_for_again(page, server):
    server.wants_key = True
    choose_sample(page, "coffee")

    for key in ("another", KEY):
        page.wait_for("!document.getElementById('key-form').hidden && document.activeElement.id === 'key'")
        page.evaluate(f"document.getElementById('key').value = '{key}'")
        page.press("Enter")
        page.wait_for("document.getElementById('key').value === ''")  # it was taken

    page.wait_for(f"{BEST}?.textContent === 'espresso'")


def test_the_state_of_the_server_is_shown(page, server):
    said = "document.getElementById('state-text').textContent"
    assert page.evaluate(said) == "Ready · efficientnet-lite0 · int8"
    again = "document.dispatchEvent(new Event('visibilitychange'))"

    server.is_ready = False
    page.evaluate(again)
    page.wait_for(f"{said} === 'Starting · efficientnet-lite0 · int8'")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    try:
        page.evaluate(again)
        page.wait_for(f"{said} === 'The server does not answer'")
    finally:
        page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )


def test_one_of_several_models_is_chosen_and_where_there_is_one_nothing_is_asked(page, server):
    box, said = "document.getElementById('model-box')", "document.getElementById('state-text').textContent"
    assert page.evaluate(f"{box}.hidden")

    with another_model(server, "second"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for(f"!{box}.hidden")
        page.evaluate(
            "document.getElementById('model').value = 'second';"
            "document.getElementById('model').dispatchEvent(new Event('change'))"
        )
        page.wait_for(f"{said} === 'Ready · second · int8'")
        choose_sample(page, "chelsea")
        page.wait_for(f"{BEST}?.textContent === 'tiger cat'")
        asked = [url for url in page.requests if "/v1/classify" in url]

    assert [url.endswith("&model=second") for url in asked] == [True]


def test_a_page_left_open_asks_only_while_the_server_is_not_ready(page, server):
    page.evaluate("window.realTimeout = setTimeout, window.setTimeout = (f) => window.realTimeout(f, 50)")
    again = "document.dispatchEvent(new Event('visibilitychange'))"

    def asked() -> int:
        page.evaluate("0")  # what the tab has said so far is read with the answer
        return sum(url.endswith("/page/state") for url in page.requests)

    before = asked()
    page.evaluate(f"{again}, new Promise(done => realTimeout(done, 400))")
    assert asked() == before + 1
    server.is_ready = False
    page.evaluate(f"{again}, new Promise(done => realTimeout(done, 400))")
    assert asked() >= before + 4


@pytest.mark.parametrize("path", ["/app", "/app/"])
def test_the_page_works_below_a_prefix(chromium, server, path):
    chromium.open(f"{server.url}{path}")
    chromium.wait_for("document.querySelectorAll('.strip img').length === 8")

    choose_sample(chromium, "coffee")

    chromium.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert chromium.evaluate("document.querySelector('nav a').href") == f"{server.url}/app/docs"


@pytest.mark.parametrize("name", ["page.webp", "page-phone.webp", "report.webp"])
def test_the_screenshots_are_kept_small(name):
    assert 10_000 < (ROOT / "docs" / name).stat().st_size < 200_000
