"""The page for everyone and against everyone: keyboard, announcements, contrast, sizes, motion; and what it must not do."""

from __future__ import annotations

import pytest

from tests.support.page_words import BEST, choose_sample


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


def test_results_come_into_view_on_a_phone(page):
    page.look(width=390, height=600, motion="reduce")

    choose_sample(page, "coffee")
    page.wait_for(BEST)

    assert page.evaluate(f"{BEST}.getBoundingClientRect().bottom") < 600
