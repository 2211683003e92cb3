"""A closed-loop HTTP load: clients on kept connections, each sending its next image as soon as it has an answer.

Light on purpose: raw sockets, since a client that takes as much CPU as the endpoint measures itself.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter = field(default_factory=Counter)
    problems: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    retry_after: int = 0
    began: float = 0.0
    elapsed: float = 0.0

    @property
    def failed(self) -> int:
        """Requests that were answered neither 200 nor, with Retry-After, 503."""
        return (
            sum(self.problems.values())
            + sum(n for status, n in self.statuses.items() if status not in (200, 503))
            + max(0, self.statuses[503] - self.retry_after)
        )

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the 200s was answered."""
        ordered = sorted(self.seconds)
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0

    def summary(self) -> dict:
        ok = self.statuses[200]
        return {
            "requests": sum(self.statuses.values()) + sum(self.problems.values()),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "problems": dict(self.problems),
            "failed": self.failed,
            "ok_per_s": round(ok / self.elapsed, 1) if self.elapsed else 0.0,
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
        }


class Client:
    """One connection, opened again where the server closed it."""

    def __init__(self, host: str, port: int, path: str = "/v1/classify") -> None:
        self._address = (host, port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: ".encode()
        self._socket: socket.socket | None = None

    def post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send one image; return status, headers, body."""
        for attempt in (1, 2):
            fresh = self._socket is None
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=30)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._socket.sendall(self._head + b"%d\r\n\r\n" % len(body) + body)
                return self._read(self._socket)
            except (ConnectionError, EOFError):
                self.close()
                # A server may close a kept connection at any time; HTTP lets a client send again on a new one where
                # nothing of an answer came. On a new connection that is a failure.
                if fresh or attempt == 2:
                    raise
        raise AssertionError

    def _read(self, connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                raise EOFError("closed before the answer's head was whole")
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(body) < length:
            part = connection.recv(65536)
            if not part:
                raise ConnectionResetError("closed in the middle of an answer")
            body += part
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split(" ", 2)[1]), headers, body

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Load:
    """Clients in threads, from `with` to its end.

    Args:
        per_s: Requests that all clients together send a second, as far as answers let them; None: as fast as they get
            answers.
        answered: Called with the status and body of each answer, in the client's thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        images: Sequence[bytes],
        clients: int,
        *,
        path: str = "/v1/classify",
        per_s: float | None = None,
        answered: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._answered = answered
        self._interval_s = None if per_s is None else clients / per_s
        self.tally = Tally()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._args = (host, port, path)
        self._images = images
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self) -> Load:
        self.tally.began = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        self.tally.elapsed = time.perf_counter() - self.tally.began

    def _run(self, number: int) -> None:
        client = Client(*self._args)
        sent = number
        # Spread over the interval from the first on.
        due = time.perf_counter() + (self._interval_s or 0.0) * number / max(1, len(self._threads))
        while not self._stop.is_set():
            if self._interval_s is not None:
                if self._stop.wait(max(0.0, due - time.perf_counter())):
                    break
                due = max(due + self._interval_s, time.perf_counter())
            body = self._images[sent % len(self._images)]
            sent += 7
            began = time.perf_counter()
            try:
                status, headers, answer = client.post(body)
            except (OSError, EOFError, ValueError) as err:
                client.close()
                with self._lock:
                    self.tally.problems[f"{type(err).__name__}: {err}"[:80]] += 1
                time.sleep(0.05)
                continue
            took = time.perf_counter() - began
            if self._answered is not None:
                self._answered(status, answer)
            with self._lock:
                self.tally.statuses[status] += 1
                if status == 200:
                    self.tally.seconds.append(took)
                if status == 503 and "retry-after" in headers:
                    self.tally.retry_after += 1
            if status == 503 and self._interval_s is None:
                time.sleep(0.02)
        client.close()


def sample_images(folder: Path | None, limit: int = 500) -> list[bytes]:
    """Return JPEGs: of a folder or tars, else the bundled photographs."""
    import tarfile

    root = folder or Path(__file__).parents[1] / "models" / "samples"
    images: list[bytes] = []
    for path in sorted(root.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                        images.append(content.read())
        elif path.suffix.lower() in (".jpg", ".jpeg"):
            images.append(path.read_bytes())
        if len(images) >= limit:
            break
    return images[:limit]
