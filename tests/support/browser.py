"""Drive Chromium over its DevTools protocol, as far as the tests need it.

The protocol is JSON over one WebSocket, and `websockets` comes with uvicorn, which Ray Serve needs. Selenium would add a
dependency and a second program (chromedriver) to use the same protocol.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from websockets.sync.client import ClientConnection, connect

WAIT_S = 15.0
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


def chromium_path() -> str | None:
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. `requests` has the URLs that the page requested, `complaints` its errors and warnings."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") != number:
                self._note(message)
                continue
            assert "error" not in message, f"{method}: {message['error']}"
            return message["result"]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + WAIT_S
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > until:
                raise AssertionError(f"never true: {expression}\n{self.evaluate('document.body.innerText')}")
            time.sleep(0.03)

    def load(self, url: str) -> None:
        """Load a page."""
        self.requests.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def open(self, url: str) -> None:
        """Load the endpoint's page, and wait until it shows the server's state."""
        self.load(url)
        self.wait_for("document.getElementById('state').dataset.state !== 'waiting'")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release one key: Tab, Enter, " " or a character."""
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        event = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": modifiers, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{**event, "text": ""})

    def choose_files(self, *paths: Path) -> None:
        """Choose files in the page's file input, as its dialog would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop_files(self, *paths: Path) -> None:
        """Drag files onto the page and drop them."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=500, data=data)

    def look(
        self, *, width: int = 1280, height: int = 800, scheme: str = "light", motion: str = "no-preference"
    ) -> None:
        """Set the window's size in CSS pixels, the colour scheme and the preference for reduced motion."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)

    def screenshot(self, path: Path, *, whole: bool = True, **options: Any) -> None:
        """Save a screenshot of the whole page, or of its visible part."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **options)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(params["entry"]["text"])


@contextmanager
def running_browser(executable: str) -> Iterator[Browser]:
    """Run a headless Chromium until the block ends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--hide-scrollbars", "--disable-background-networking", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        try:
            with connect(_tab(process, Path(profile), log), max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait(timeout=WAIT_S)


def _tab(process: subprocess.Popen[bytes], profile: Path, log: IO[bytes]) -> str:
    """Return the address of the first tab, once Chromium has written its port to a file."""
    port_file = profile / "DevToolsActivePort"
    until = time.monotonic() + 2 * WAIT_S
    while True:
        if process.poll() is not None:
            log.seek(0)
            raise AssertionError(
                f"Chromium ended with {process.returncode}: {log.read()[-2000:].decode(errors='replace')}"
            )
        assert time.monotonic() < until, "Chromium did not open its DevTools port"
        if port_file.exists() and (port := port_file.read_text().partition("\n")[0]):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_S) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
