"""What the tests of the page say again and again."""

from __future__ import annotations

from tests.support.browser import Browser

# The best label of the newest result.
BEST = "document.querySelector('.card .name')"
SAMPLES = ("astronaut", "camera", "chelsea", "china", "coffee", "flower", "grace_hopper", "rocket")


def choose_sample(page: Browser, name: str) -> None:
    index = sorted(["astronaut", "camera", "chelsea", "china", "coffee", "flower", "grace_hopper", "rocket"]).index(
        name
    )
    page.evaluate(f"document.querySelectorAll('.strip button')[{index}].click()")
