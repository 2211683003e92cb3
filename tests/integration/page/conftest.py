"""Fixtures: Chromium, the endpoint in this process, and the page loaded in the one from the other."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, chromium_path, running_browser
from tests.support.page_server import PageServer, running_page_server

SAMPLES = Path(__file__).parents[3] / "models" / "samples" / "photos.tar"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    executable = chromium_path()
    if executable is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with running_browser(executable) as browser:
        yield browser


@pytest.fixture(scope="session")
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
    with tarfile.open(SAMPLES) as tar:
        tar.extractall(folder, filter="data")
    return folder
