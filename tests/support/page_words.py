"""Expressions and actions that the tests of the page share."""

from __future__ import annotations

from tests.support.browser import Browser

# The best label of the newest result.
BEST = "document.querySelector('.card .name')"
SAMPLES = ("astronaut", "camera", "chelsea", "china", "coffee", "flower", "grace_hopper", "rocket")


def choose_sample(page: Browser, name: str) -> None:
    page.evaluate(f"document.querySelectorAll('.strip button')[{SAMPLES.index(name)}].click()")
