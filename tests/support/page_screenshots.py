"""Take the screenshots of the page for docs/, with the bundled photographs only.

python -m tests.support.page_screenshots [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.browser import Browser, chromium_path, running_browser
from tests.support.page_server import running_page_server
from tests.support.page_words import choose_sample

DESKTOP = ("chelsea", "coffee", "china", "rocket")
PHONE = ("china", "chelsea")


def take(browser: Browser, url: str, path: Path, samples: tuple[str, ...], **look: object) -> None:
    """Label a few samples and save a screenshot."""
    browser.look(motion="reduce", **look)
    browser.open(url)
    browser.wait_for("document.querySelectorAll('.strip img').length === 8")
    for count, name in enumerate(samples, 1):
        choose_sample(browser, name)
        browser.wait_for(f"document.querySelectorAll('.labels').length === {count}")
    browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    browser.screenshot(path, format="webp", quality=82)


def main() -> None:
    """Save page.webp and page-phone.webp."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with running_page_server() as server, running_browser(chromium_path() or "chromium") as browser:
        take(browser, f"{server.url}/", folder / "page.webp", DESKTOP)
        take(browser, f"{server.url}/", folder / "page-phone.webp", PHONE, width=390, height=844, scheme="dark")


if __name__ == "__main__":
    main()
