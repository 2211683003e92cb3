"""What every route is made of: headers, the deadline, answers in JSON, and which error is which status.

A route is a plain ASGI application. It may raise `Rejected`, or an error of `models.errors`, as long as it has not
begun to answer: `serve.app` turns them into `{"error": ...}`. So no route has a table of its own.
"""

from __future__ import annotations

import json
import math
import time
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

OWN_TIMEOUT_HEADER = "x-shardlabel-timeout-seconds"

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
