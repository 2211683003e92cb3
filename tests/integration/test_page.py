"""The page at `/`, as people use it, in a real Chromium."""

from __future__ import annotations

import json
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, chromium_path, running_browser
from tests.page_server import KEY, PageServer, running_page_server

ROOT = Path(__file__).parents[2]
BEST = "document.querySelector('.card .name')"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = chromium_path()
    if executable is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with running_browser(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def running() -> Iterator[PageServer]:
    with running_page_server() as server:
        yield server


@pytest.fixture
def server(running: PageServer) -> PageServer:
    running.reset()
    return running


@pytest.fixture
def page(chromium: Browser, server: PageServer) -> Browser:
    """Return a tab with the page just loaded, its samples shown, on a desktop in light colours."""
    chromium.look(motion="reduce")
    chromium.open(f"{server.url}/")
    chromium.wait_for("document.querySelectorAll('.strip img').length === 8")
    return chromium


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the bundled photographs as files."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(ROOT / "models" / "samples" / "photos.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder


def ask(server: PageServer, image: bytes) -> dict[str, Any]:
    """Return what the endpoint answers to one image."""
    headers = {"Content-Type": "image/jpeg"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/classify", image, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as err:
        return json.load(err)


def choose_sample(page: Browser, name: str) -> None:
    index = sorted(["astronaut", "camera", "chelsea", "china", "coffee", "flower", "grace_hopper", "rocket"]).index(
        name
    )
    page.evaluate(f"document.querySelectorAll('.strip button')[{index}].click()")


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
    assert re.search(r"\d ms · server \d[\d.]*$", card)


def test_files_can_be_chosen(page, server, photographs):
    page.choose_files(photographs / "coffee.webp")

    page.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert server.asked == ["image/webp"]


def test_files_can_be_dropped_anywhere(page, photographs):
    page.drop_files(photographs / "coffee.webp")

    page.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert page.evaluate("document.body.className") == ""


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


def test_everything_can_be_done_with_the_keyboard_and_the_focus_is_seen(page):
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        seen = page.evaluate(
            "getComputedStyle(document.activeElement.closest('.drop') ?? document.activeElement).outlineWidth"
        )
        assert reached[-1] == "BODY" or float(seen.removesuffix("px")) >= 2
        if reached[-1] == "BUTTON":
            break
    assert reached[0] == "files"

    page.press("Enter")
    page.wait_for(BEST)
    while page.evaluate("document.activeElement.id") != "clear":
        page.press("Tab")
    page.press(" ")

    page.wait_for("document.getElementById('results').hidden")
    assert page.evaluate("document.activeElement.id") == "files"


def test_results_are_announced(page):
    assert page.evaluate("document.getElementById('say').getAttribute('aria-live')") == "polite"

    choose_sample(page, "coffee")

    page.wait_for("/^coffee.webp: espresso, \\d\\d\\.\\d %$/.test(document.getElementById('say').textContent)")


def test_every_control_has_a_name(page, server):
    server.wants_key = True
    choose_sample(page, "coffee")
    page.wait_for("document.activeElement.id === 'key'")

    nodes = page.call("Accessibility.getFullAXTree")["nodes"]

    controls = [
        n
        for n in nodes
        if n.get("role", {}).get("value") in {"button", "textbox", "link", "image", "DisclosureTriangle"}
    ]
    assert len(controls) > 12
    assert not [node for node in controls if not node.get("name", {}).get("value")]


def test_nothing_is_asked_of_another_host_and_nothing_breaks_the_policy(page, server):
    choose_sample(page, "chelsea")
    page.wait_for(BEST)

    page.evaluate("0")  # so that all that was said before has been read

    assert page.requests
    assert [
        url for url in page.requests if not url.startswith((f"{server.url}/", "data:", f"blob:{server.url}/"))
    ] == []
    assert page.complaints == []


def test_a_script_that_was_slipped_in_does_not_run(page):
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.slipped = 1'}));"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.slipped = 2\">')"
    )

    page.wait_for("document.querySelector('body > img').complete")
    assert page.evaluate("window.slipped ?? null") is None
    assert any("Content Security Policy" in text for text in page.complaints)


def test_the_name_of_a_file_is_only_ever_text(page, photographs, tmp_path):
    name = "<img src=x onerror=alert(1)>.webp"
    (tmp_path / name).write_bytes((photographs / "coffee.webp").read_bytes())

    page.choose_files(tmp_path / name)

    page.wait_for(BEST)
    assert page.evaluate("document.querySelector('.card h3').textContent") == name
    assert page.evaluate("document.querySelectorAll('.card h3 *').length") == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_is_wider_than_the_screen(page, width):
    page.look(width=width, motion="reduce")
    choose_sample(page, "china")
    page.wait_for(BEST)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    targets = page.evaluate(
        "[...document.querySelectorAll('button, a, summary, .drop')].filter(node => node.checkVisibility())"
        ".map(node => [node.textContent, node.getBoundingClientRect()]).map(([text, box]) => [text, box.width, box.height])"
    )
    # WCAG 2.2, 2.5.8: targets of 24 pixels.
    assert [target for target in targets if min(target[1:]) < 24] == []


CONTRASTS = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (node) => { for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor); if (colour[3] === 255) return colour; }
    return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(node => node.offsetParent && !node.closest('.unseen, .veil')
      && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
    .map(node => { const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
      return [node.textContent.slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]; });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, server, scheme, tmp_path):
    page.look(scheme=scheme, motion="reduce")
    (tmp_path / "no.jpg").write_bytes(b"no image")
    page.choose_files(tmp_path / "no.jpg")
    page.wait_for("document.querySelector('.wrong')")
    choose_sample(page, "china")
    page.wait_for(BEST)
    server.wants_key = True
    choose_sample(page, "coffee")
    page.wait_for("document.activeElement.id === 'key'")

    contrasts = page.evaluate(CONTRASTS)

    assert len(contrasts) > 20
    # WCAG 2.2, 1.4.3: 4.5 to 1 for text.
    assert [pair for pair in contrasts if pair[1] < 4.5] == []


def test_the_two_schemes_differ(page):
    grounds = set()
    for scheme in ("light", "dark"):
        page.look(scheme=scheme, motion="reduce")
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert len(grounds) == 2


def test_nothing_moves_where_motion_is_not_welcome(page):
    choose_sample(page, "coffee")
    page.wait_for(BEST)
    durations = (
        "[...document.querySelectorAll('.drop, .track i, .strip img')].map(n => getComputedStyle(n).transitionDuration)"
    )

    assert set(page.evaluate(durations)) == {"0s"}
    page.look(motion="no-preference")
    assert "0s" not in page.evaluate(durations)


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


def test_results_come_into_view_on_a_phone(page):
    page.look(width=390, height=600, motion="reduce")

    choose_sample(page, "coffee")
    page.wait_for(BEST)

    assert page.evaluate(f"{BEST}.getBoundingClientRect().bottom") < 600


@pytest.mark.parametrize("path", ["/app", "/app/"])
def test_the_page_works_below_a_prefix(chromium, server, path):
    chromium.open(f"{server.url}{path}")
    chromium.wait_for("document.querySelectorAll('.strip img').length === 8")

    choose_sample(chromium, "coffee")

    chromium.wait_for(f"{BEST}?.textContent === 'espresso'")
    assert chromium.evaluate("document.querySelector('nav a').href") == f"{server.url}/app/docs"


@pytest.mark.parametrize("name", ["page.webp", "page-phone.webp"])
def test_the_screenshots_are_kept_small(name):
    assert 10_000 < (ROOT / "docs" / name).stat().st_size < 200_000
