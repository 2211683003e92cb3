"""What every route is made of: reading a bounded body, answering JSON, and which error is which status.

A route is a plain ASGI application. It may raise `Rejected`, or an error of `models.errors`, as long as it has not
begun to answer: `serve.app` turns them into `{"error": ...}`. So no route has a table of its own.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from models.errors import (
    DeadlineError,
    EmptyImageError,
    ImageTooLargeError,
    InputError,
    OverloadedError,
    UnsupportedImageError,
)
from serve.haproxy import OWN_TIMEOUT_HEADER

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"
# Ray Serve's own name for it; see `deadline_of`. HAProxy passes it on under another, which Serve does not look at.
TIMEOUT_HEADER = b"x-request-timeout-seconds"
# Serve too gives up at the time that the header names, with an answer that is no JSON: ours comes just before.
_ANSWER_AHEAD_S = 0.02


class Rejected(Exception):  # noqa: N818 (an answer, not a fault)
    """The answer to this request is an error.

    Args:
        status: Of HTTP, 400 to 599.
        message: For the caller: what, got, expected. Never a path of this machine.
        headers: Sent with it.
        kind: For the metrics; the status where it is not given.
    """

    def __init__(self, status: int, message: str, *, headers: Headers = (), kind: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.kind = kind or str(status)


class BodyMemory:
    """Bytes of the request bodies that a process holds, bounded: many large uploads at once must not fill it.

    Args:
        limit: Of all bodies together, bytes.
    """

    KEY = "shardlabel.body_memory"

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._of: dict[int, int] = {}

    def take(self, scope: Scope, size: int) -> None:
        """Count bytes of a request, or raise OverloadedError."""
        if self._used + size > self._limit:
            raise OverloadedError(
                f"overloaded: the requests in progress have {self._used:,} bytes, and max_body_memory is "
                f"{self._limit:,}; try again later",
                retry_after_s=1.0,
            )
        self._used += size
        self._of[id(scope)] = self._of.get(id(scope), 0) + size

    def give_back(self, scope: Scope) -> None:
        """Forget a request that was answered."""
        self._used -= self._of.pop(id(scope), 0)


class ClientGoneError(Exception):
    """The client closed the connection before its request was whole: nobody is left to answer."""


def as_rejected(err: Exception) -> Rejected | None:
    """Return the answer that an error of the tree in `models.errors` stands for; None for a fault of ours."""
    if isinstance(err, Rejected):
        return err
    if isinstance(err, OverloadedError):
        seconds = max(1, math.ceil(err.retry_after_s))
        return Rejected(503, str(err), headers=((b"retry-after", b"%d" % seconds),), kind="overloaded")
    if isinstance(err, DeadlineError):
        return Rejected(504, str(err), kind="deadline")
    if isinstance(err, InputError):
        return Rejected(input_status(err), str(err), kind=err.status)
    return None


def input_status(err: InputError) -> int:
    """Return the HTTP status for an image that cannot be labelled and was alone in its request."""
    if isinstance(err, ImageTooLargeError):
        return 413
    if isinstance(err, UnsupportedImageError):
        return 415
    return 400 if isinstance(err, EmptyImageError) else 422


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a request header by its lower-case name; None where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def deadline_of(scope: Scope, default_s: float) -> float:
    """Return the `time.monotonic()` until which the client waits.

    Args:
        scope: Of the request; `x-request-timeout-seconds` may shorten the deadline, not extend it.
        default_s: The configured deadline, seconds from now.

    Raises:
        Rejected: 400, the header is no positive number.
    """
    asked, ahead = header(scope, OWN_TIMEOUT_HEADER.encode()), 0.0
    if asked is None:
        asked, ahead = header(scope, TIMEOUT_HEADER), _ANSWER_AHEAD_S
    seconds = default_s
    if asked is not None:
        try:
            given = float(asked)
        except ValueError:
            given = math.nan
        if not (math.isfinite(given) and given > 0):
            raise Rejected(
                400, f"{TIMEOUT_HEADER.decode()} must be a positive number of seconds, got {asked.decode('latin-1')!r}"
            )
        seconds = min(default_s, given - ahead)
    return time.monotonic() + seconds


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Read a whole request body, and undo its Content-Encoding (gzip or deflate).

    Args:
        scope: Of the request.
        receive: ASGI's.
        max_bytes: Of the body, as it was sent and after it was unpacked.

    Raises:
        Rejected: 413 it is larger, 415 another encoding, 400 the packed data are broken.
        OverloadedError: The bodies in progress fill the memory that there is for them.
        ClientGoneError: The client went away in the middle.
    """
    unpack = _unpacker(scope)
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > max_bytes:
        raise _too_many_bytes(int(length), max_bytes)
    parts: list[bytes] = []
    size = 0
    memory: BodyMemory | None = scope.get(BodyMemory.KEY)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        if part:
            size += len(part)
            if size > max_bytes:
                raise _too_many_bytes(size, max_bytes)
            if memory is not None:
                memory.take(scope, len(part))
            parts.append(part)
        if not message.get("more_body", False):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return body if unpack is None else _unpacked(body, unpack, max_bytes)


def _too_many_bytes(got: int, max_bytes: int) -> Rejected:
    return Rejected(
        413, f"the request has at least {got:,} bytes; max_request_bytes is {max_bytes:,}", kind="too_large"
    )


def _unpacker(scope: Scope) -> int | None:
    """Return zlib's window bits for the request's Content-Encoding; None where it is not packed."""
    encoding = (header(scope, b"content-encoding") or b"identity").strip().lower()
    if encoding in (b"identity", b""):
        return None
    if encoding in (b"gzip", b"x-gzip"):
        return 16 + zlib.MAX_WBITS
    if encoding == b"deflate":
        return zlib.MAX_WBITS
    raise Rejected(415, f"Content-Encoding must be gzip, deflate or identity, got {encoding[:40].decode('latin-1')!r}")


def _unpacked(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    """Unpack no more than is allowed: a few kilobytes can stand for gigabytes."""
    if window_bits == zlib.MAX_WBITS and body and (body[0] & 0x0F) != 8:
        window_bits = -zlib.MAX_WBITS  # raw deflate, which some clients send under that name
    machine = zlib.decompressobj(window_bits)
    try:
        content = machine.decompress(body, max_bytes + 1)
    except zlib.error as err:
        raise Rejected(400, f"the body does not unpack by its Content-Encoding: {err}") from err
    if len(content) > max_bytes:
        raise _too_many_bytes(len(content), max_bytes)
    if not machine.eof:
        raise Rejected(400, "the body does not unpack by its Content-Encoding: it ends early")
    if machine.unused_data:
        raise Rejected(400, "the body does not unpack by its Content-Encoding: data follow its end")
    return content


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response.

    Attributes:
        body: Bytes of the body.
        status: Of HTTP.
        content_type: Of the body.
        headers: Others.
    """

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send) -> None:
        """Send it."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_answer(value: object, *, status: int = 200, headers: Headers = ()) -> Answer:
    """Return a value as JSON."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return Answer(body, status, JSON, tuple(headers))


def error_answer(rejected: Rejected) -> Answer:
    """Return `{"error": ...}`, the one form of all errors."""
    # A lone surrogate (of a name in the request, say) has no UTF-8 form; the ASCII form of JSON holds anything.
    body = json.dumps({"error": str(rejected)}).encode()
    return Answer(body, rejected.status, JSON, rejected.headers)
