"""An S3 server (moto) that supports ranges and conditions, and a proxy before it that injects faults and counts requests.

The seed, the request and the number of its earlier occurrences decide each fault, so that thread order does not matter.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.object_server import BUCKET, ObjectServer, end, free_port, wait_until_open

KEY_ID = "shardlabel-test"
SECRET = "shardlabel-test-secret"
# Faults: throttled, an internal error, or a connection that breaks before the call, in its answer, or after it.
FAULTS = ("slow_down", "internal", "reset", "truncate", "lost_answer")


@dataclass(frozen=True)
class S3Server(ObjectServer):
    @property
    def scheme(self) -> str:
        return "s3"

    @cached_property
    def client(self) -> Any:
        """Return boto3's client for the server, which bypasses every proxy."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="us-east-1"
        )

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        except self.client.exceptions.NoSuchKey:
            return None

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [str(found["Key"]) for page in pages for found in page.get("Contents", ())]

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint or self.url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def serves_s3() -> bool:
    """Tell whether moto is installed."""
    return importlib.util.find_spec("moto") is not None


@contextmanager
def running_s3(folder: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run the server until the block ends; the bucket starts with the files of `folder/BUCKET`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)],
            stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**30)},
        )  # fmt: skip
        try:
            wait_until_open(port, process)
            server = S3Server(port, folder)
            server.client.create_bucket(Bucket=BUCKET)
            server.put_folder(folder / BUCKET)
            yield server
        finally:
            end(process)


@dataclass(frozen=True)
class Call:
    """One request as received by the proxy."""

    method: str
    path: str  # /bucket/key, unquoted
    query: Mapping[str, list[str]]
    range: str
    number: int  # how often the same request came before

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type" in self.query


@dataclass
class Answered:
    """A request, its fault, and the status and sent body bytes of its answer."""

    call: Call
    fault: str | None
    status: int = 0
    body_bytes: int = 0


Rule = Callable[[Call], str | None]


def share_of_faults(share: float, seed: int, faults: tuple[str, ...] = FAULTS) -> Rule:
    """Return a rule that gives a share of calls one of the faults."""

    def rule(call: Call) -> str | None:
        query = sorted((k, v) for k, v in call.query.items() if k != "uploadId")
        dice = random.Random(f"{seed}|{call.method}|{call.path}|{query}|{call.range}|{call.number}")
        return dice.choice(faults) if dice.random() < share else None

    return rule


@dataclass
class FaultProxy:
    """A proxy between an S3 client and an S3 server. `rule` decides each call's fault; `calls` records the calls.

    Faults: None (passed on), `slow_down` (503), `internal` (500), `reset` (before it is passed on), `lost_answer` (done,
    but the connection is reset before the answer), `truncate` (half of the body), `stall` (no answer for `stall_s`),
    and `denied`, `secret`, `key_id` (403).
    """

    upstream: ObjectServer
    rule: Rule = field(default=lambda call: None)
    stall_s: float = 60.0
    port: int = 0
    calls: list[Answered] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """Return the endpoint for clients."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return a client's environment."""
        return self.upstream.environment(self.url)

    def decide(self, method: str, target: str, range_: str) -> Answered:
        """Number a request, and decide its fault."""
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        # A restarted upload has a new id; counted by it, the upload would get the same fault every time.
        same = f"{method} {parts.path} {sorted((k, v) for k, v in query.items() if k != 'uploadId')} {range_}"
        with self._lock:
            number = self._seen[same]
            self._seen[same] += 1
        call = Call(method, unquote(parts.path), query, range_, number)
        # Outside the lock, since a rule may block.
        answered = Answered(call, self.rule(call))
        with self._lock:
            self.calls.append(answered)
        return answered

    def forget(self) -> None:
        """Reset the counts."""
        with self._lock:
            self.calls.clear()
            self._seen.clear()

    def bytes_by_object(self) -> Counter[str]:
        """Return the number of content bytes sent for each object."""
        counts: Counter[str] = Counter()
        for answered in list(self.calls):
            call = answered.call
            if call.method == "GET" and not call.is_listing and answered.status in (200, 206):
                counts[call.path.removeprefix(f"/{BUCKET}/")] += answered.body_bytes
        return counts

    def count(self, method: str, *, listing: bool = False) -> int:
        """Return the number of requests of a kind."""
        return sum(a.call.method == method and a.call.is_listing == listing for a in list(self.calls))


@contextmanager
def running_proxy(
    upstream: ObjectServer, rule: Rule | None = None, *, stall_s: float = 60.0, port: int = 0
) -> Iterator[FaultProxy]:
    """Run a proxy until the block ends, on any free port unless one is given."""
    proxy = FaultProxy(upstream, rule or (lambda call: None), stall_s)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _QuietServer(("127.0.0.1", port), handler)
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopping.set()
        server.shutdown()
        server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients may disconnect at any time
            super().handle_error(request, client_address)


_ERRORS = {"slow_down": (503, "SlowDown", "Please reduce your request rate."),
           "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
           "denied": (403, "AccessDenied", "Access Denied"),
           "secret": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
           "key_id": (403, "InvalidAccessKeyId", "The key does not exist in our records.")}  # fmt: skip
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        finally:
            if self._upstream is not None:
                self._upstream.close()

    def _pass(self) -> None:
        answered = self.proxy.decide(self.command, self.path, self.headers.get("Range", ""))
        body = self._body()
        fault = answered.fault
        if fault in _ERRORS:
            self._error(answered, *_ERRORS[fault])
        elif fault == "stall":
            self.proxy.stopping.wait(self.proxy.stall_s)
            self._reset()
        elif fault == "reset":
            self._reset()
        else:
            status, headers, content = self._ask(body)
            if fault == "lost_answer":
                self._reset()
            else:
                self._answer(answered, status, headers, content, cut=fault == "truncate")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815 (names are http.server's)

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # http.server has answered it
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = self._upstream or http.client.HTTPConnection("127.0.0.1", self.proxy.upstream.port)
        self._upstream = connection
        # Unchanged, including the host, which the signature covers.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP | {"expect"}:
                connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        content = response.read()
        length = response.getheader("Content-Length")
        headers = [(n, v) for n, v in response.getheaders() if n.lower() not in _HOP_BY_HOP]
        return response.status, [*headers, ("Content-Length", length or str(len(content)))], content

    def _answer(
        self, answered: Answered, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool
    ) -> None:
        answered.status = status
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        sent = content[: len(content) // 2] if cut else content
        for start in range(0, len(sent), 2**18):  # in pieces, since a client may disconnect
            self.wfile.write(sent[start : start + 2**18])
            answered.body_bytes = min(len(sent), start + 2**18)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _error(self, answered: Answered, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        content = text.encode()
        answered.status = status
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        # Linger 0: the kernel sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
