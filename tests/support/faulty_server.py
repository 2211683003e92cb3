"""An HTTP server on loopback with scripted answers: it truncates, lies, stalls, and records requests."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from models.spec import Artifact
from models.store.files import artifact_path

BODY = random.Random(0).randbytes(600_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
WRONG = BODY[:-1] + bytes([BODY[-1] ^ 1])
ETAG = '"first"'


@dataclass
class Reply:
    """How to answer one request.

    Without `has_length` the body ends with the connection. With `cut_at` the connection is closed at that byte of the
    file; with `hold_at` the server waits there for `release`.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    has_length: bool = True
    etag: str = ETAG
    cut_at: int | None = None
    hold_at: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    holding: threading.Event = field(default_factory=threading.Event)


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    sent: int = 0


class FaultyServer:
    """Answers each request with the next reply; the last reply is repeated."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[Request] = []
        self.url = ""

    def next_reply(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    faulty = FaultyServer()
    handler = type("Handler", (_Handler,), {"faulty": faulty})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        faulty.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield faulty
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        request = Request(self.path, dict(self.headers.items()))
        self.faulty.requests.append(request)
        reply = self.faulty.next_reply()
        start = self._start(reply)
        if start is not None and start >= len(reply.body):
            self.send_error(416)
            return
        self.send_response(reply.status if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}")
        start = start or 0
        if reply.has_length:
            self.send_header("Content-Length", str(len(reply.body) - start))
        self.send_header("ETag", reply.etag)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(request, reply, start)

    def _start(self, reply: Reply) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_same = self.headers.get("If-Range", reply.etag) == reply.etag
        return int(match[1]) if match and reply.ranges and reply.status == 200 and is_same else None

    def _send(self, request: Request, reply: Reply, start: int) -> None:
        end = len(reply.body) if reply.cut_at is None else reply.cut_at
        try:
            if reply.hold_at is not None:
                self._write(request, reply.body[start : reply.hold_at])
                reply.holding.set()
                reply.release.wait(30)
                start = reply.hold_at
            self._write(request, reply.body[start:end])
        except ConnectionError:
            pass

    def _write(self, request: Request, data: bytes) -> None:
        for at in range(0, len(data), 1 << 16):
            piece = data[at : at + (1 << 16)]
            self.wfile.write(piece)
            request.sent += len(piece)


def artifact_at(*urls: str) -> Artifact:
    return Artifact(file="some.onnx", sha256=SHA256, size_bytes=len(BODY), sources=urls)


def artifact_on(*servers: FaultyServer) -> Artifact:
    return artifact_at(*(f"{server.url}/models/some.onnx" for server in servers))


def cache_files() -> set[str]:
    folder = artifact_path(artifact_at()).parent
    return {path.name for path in folder.iterdir()} - {"some.onnx.lock"}
