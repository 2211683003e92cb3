"""Chromium, driven over its DevTools protocol: what a test needs of a browser, and no more.

The protocol is JSON over one WebSocket, and `websockets` comes with uvicorn, hence with Ray Serve. Selenium would be one
more dependency and a second program (chromedriver), to reach the same protocol.
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
    """Return where Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. What the page asked of the network, and what it complained about, is kept in `requests` and `complaints`."""

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
        """Return as soon as an expression is true."""
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
        """Load the page of the endpoint, and wait until the server's state is on it."""
        self.load(url)
        self.wait_for("document.getElementById('state').dataset.state !== 'waiting'")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release one key: Tab, Enter, " " or a character."""
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        event = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": modifiers, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{**event, "text": ""})

    def choose_files(self, *paths: Path) -> None:
        """Choose files in the page's file input, as its dialogue would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop_files(self, *paths: Path) -> None:
        """Drag files from outside over the page and let them go."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=500, data=data)

    def look(
        self,
        *,
        width: int = 1280,
        height: int = 800,
        scale: int = 1,
        scheme: str = "light",
        motion: str = "no-preference",
    ) -> None:
        """Set the window's size in CSS pixels, device pixels per CSS pixel, the colour scheme and the wish for motion."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)

    def screenshot(self, path: Path, *, whole: bool = True, **options: Any) -> None:
        """Save what is shown, or the whole page."""
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
    """Start a Chromium without a window, and end it."""
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
    """Return the address of the first tab, once Chromium has written down its port."""
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
