"""The common interface of the tests' object stores: one bucket, reached without a proxy, and a client's environment."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bucket"
_FETCHING = threading.Lock()


def free_port() -> int:
    """Return a free port, chosen by the operating system."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ObjectServer(ABC):
    """A running server with one bucket; `folder/BUCKET` has the files that `fetch` copied last."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        """Return the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def scheme(self) -> str:
        """Return the scheme of its URIs."""

    @abstractmethod
    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the environment variables that a client needs for the server, or for a proxy in front of it."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Read an object; None if it does not exist."""

    @abstractmethod
    def keys(self, prefix: str = "") -> list[str]:
        """List the keys with a prefix, in order."""

    def uri(self, name: str) -> str:
        """Return the URI of a place in the bucket."""
        return f"{self.scheme}://{BUCKET}/{name}"

    def put_folder(self, folder: Path) -> None:
        """Write all files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(str(path.relative_to(folder)), path.read_bytes())

    def fetch(self, prefix: str) -> Path:
        """Mirror a folder of the bucket to the disk, file by file, and return its path."""
        with _FETCHING:
            return self._fetch(prefix)

    def _fetch(self, prefix: str) -> Path:
        folder = self.folder / BUCKET / prefix
        folder.mkdir(parents=True, exist_ok=True)
        keys = set(self.keys(f"{prefix}/"))
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if str(path.relative_to(self.folder / BUCKET)) not in keys:
                path.unlink()
        for key in sorted(keys):
            path = self.folder / BUCKET / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if (content := self.get(key)) is not None:  # None if it was deleted meanwhile
                path.with_name(f".{path.name}").write_bytes(content)
                path.with_name(f".{path.name}").replace(path)
        return folder


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a started server listens."""
    deadline = time.monotonic() + 120  # a busy machine has taken 30 s to start Node
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"the server did not open port {port}: exit {process.poll()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
