"""Take the screenshots that are kept in docs/, of the page and of a report, with the bundled photographs only.

python -m tests.support.page_screenshots [FOLDER]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.browser import Browser, chromium_path, running_browser
from tests.support.page_server import running_page_server
from tests.support.page_words import choose_sample

DESKTOP = ("chelsea", "coffee", "china", "rocket")
PHONE = ("china", "chelsea")
PHOTOGRAPHS = Path(__file__).parents[2] / "models" / "samples" / "photos.tar"


def take(browser: Browser, url: str, path: Path, samples: tuple[str, ...], **look: object) -> None:
    """Label a few samples and save what is seen then."""
    browser.look(motion="reduce", **look)
    browser.open(url)
    browser.wait_for("document.querySelectorAll('.strip img').length === 8")
    for count, name in enumerate(samples, 1):
        choose_sample(browser, name)
        browser.wait_for(f"document.querySelectorAll('.labels').length === {count}")
    browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    browser.screenshot(path, format="webp", quality=82)


def take_report(browser: Browser, path: Path) -> None:
    """Label the bundled photographs, and save the top of the report about them."""
    folder = Path(tempfile.gettempdir(), "photographs")  # the page shows this name
    folder.mkdir()
    try:
        shutil.copy(PHOTOGRAPHS, folder)
        label = ["label", PHOTOGRAPHS.name, "--output", "labels", "--model", "efficientnet-lite0"]
        for words in (label, ["report", "labels", "--output", "report.html"]):
            subprocess.run([sys.executable, "-m", "cluster.cli", *words], cwd=folder, check=True)
        browser.look(width=1024, height=1058, scale=2, motion="reduce")  # as high for its width as the page's
        browser.load((folder / "report.html").as_uri())
        browser.screenshot(path, whole=False, format="webp", quality=82)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Save page.webp, page-phone.webp and report.webp."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with running_page_server() as server, running_browser(chromium_path() or "chromium") as browser:
        take(browser, f"{server.url}/", folder / "page.webp", DESKTOP)
        take(browser, f"{server.url}/", folder / "page-phone.webp", PHONE, width=390, height=844, scheme="dark")
        take_report(browser, folder / "report.webp")


if __name__ == "__main__":
    main()
