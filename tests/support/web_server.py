"""A web server that returns images, or fails in all the ways in which web servers do; also as a proxy for any host.

The first part of a path selects the behaviour: `/ok/7.jpg` returns image 7, `/404/7.jpg` a 404. Once `mended` is set, all
paths return their image.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support.tiny_model import COLOURS, colour_jpeg

IMAGES = [colour_jpeg(name) for name in COLOURS]
DRIP_S = 0.2


@dataclass
class WebServer:
    port: int = 0
    mended: bool = False
    images: list[bytes] = field(default_factory=lambda: list(IMAGES))
    calls: Counter[str] = field(default_factory=Counter)  # by path
    open_now: int = 0
    most_open: int = 0
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_web() -> Iterator[WebServer]:
    web = WebServer()
    handler = type("Handler", (_Handler,), {"web": web})
    server = _Server(("127.0.0.1", 0), handler)
    web.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield web
    finally:
        web.stopping.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients may disconnect at any time


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: WebServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)  # the whole URL if the server is used as a proxy
        web = self.web
        with web.lock:
            number = web.calls[self.path]
            web.calls[self.path] += 1
            web.open_now += 1
            web.most_open = max(web.most_open, web.open_now)
            web.times.append(time.monotonic())
        try:
            _, kind, *rest = parts.path.split("/")
            digits = "".join(c for c in "".join(rest) if c.isdigit())
            image = web.images[int(digits or 0) % len(web.images)]
            self.answer("ok" if web.mended else kind, image, number)
        finally:
            with web.lock:
                web.open_now -= 1

    def answer(self, kind: str, image: bytes, number: int) -> None:
        if kind.isdigit():
            self.say(int(kind), b"no")
        elif kind in _ODD:
            _ODD[kind](self, image, number)
        else:
            self.say(200, image)

    def say(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, target: str) -> None:
        self.say(302, b"", Location=target)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def drip(self, image: bytes) -> None:
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(image)))
        self.end_headers()
        for byte in image:
            if self.web.stopping.wait(DRIP_S):
                return
            self.wfile.write(bytes([byte]))

    def drip_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            if self.web.stopping.wait(DRIP_S):
                return
            self.wfile.write(b"X-%d: 1\r\n" % number)

    def cut(self, image: bytes) -> None:
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(image)))
        self.end_headers()
        self.wfile.write(image[: len(image) // 2])
        self.close_connection = True

    def endless(self) -> None:
        self.send_response_only(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"%x\r\n" % 2**16 + bytes(2**16) + b"\r\n"
        while not self.web.stopping.is_set():
            self.wfile.write(piece)


_ODD: dict[str, Any] = {
    "reset": lambda h, image, n: h.reset(),
    "slow": lambda h, image, n: h.drip(image),
    "slow-head": lambda h, image, n: h.drip_head(),
    "loop": lambda h, image, n: h.redirect(h.path),
    "hop": lambda h, image, n: h.redirect(h.path.replace("/hop/", "/ok/")),
    "to-file": lambda h, image, n: h.redirect("file:///etc/passwd"),
    "to-private": lambda h, image, n: h.redirect(f"http://127.0.0.1:{h.web.port}/ok/1.jpg"),
    "text": lambda h, image, n: h.say(200, b"<html>Not an image</html>", Content_Type="image/jpeg"),
    "empty": lambda h, image, n: h.say(200, b""),
    "large": lambda h, image, n: h.say(200, b"", Content_Length=str(10**12)),
    "endless": lambda h, image, n: h.endless(),
    "cut": lambda h, image, n: h.cut(image),
    "packed": lambda h, image, n: h.say(200, bytes(1000), Content_Encoding="gzip"),
    "late": lambda h, image, n: h.web.stopping.wait(0.05) or h.say(200, image),
    "flaky": lambda h, image, n: h.say(200, image) if n else h.say(503, b"later"),
    "busy": lambda h, image, n: h.say(200, image) if n else h.say(429, b"later", Retry_After="1"),
    "never": lambda h, image, n: h.say(429, b"later", Retry_After="3600"),
}
