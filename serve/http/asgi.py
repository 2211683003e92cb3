"""What every route is made of: the deadline, answers in JSON, and which error is which status.

A route is Starlette's: it takes a request and returns a response. It may raise `Rejected`, or an error of
`models.errors`: `serve.http.application` turns them into `{"error": ...}`. So no route has a table of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Annotated

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from models.errors import DeadlineError, InputError, NotReadyError, OverloadedError, UnknownModelError

OWN_TIMEOUT_HEADER = "x-shardlabel-timeout-seconds"
# Ray Serve's own name for it; see `deadline_of`. HAProxy passes it on under another, which Serve does not look at.
TIMEOUT_HEADER = "x-request-timeout-seconds"
TIMEOUT = {
    TIMEOUT_HEADER: Annotated[float, Field(gt=0, description="A shorter deadline than the endpoint's own, seconds.")]
}
# In a request's scope: the name of the model that it is for.
MODEL = "shardlabel.model"
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

    def __init__(
        self, status: int, message: str, *, headers: Iterable[tuple[bytes, bytes]] = (), kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.kind = kind or str(status)


def as_rejected(err: Exception) -> Rejected | None:
    """Return the answer that an error of the tree in `models.errors` stands for; None for a fault of ours."""
    if isinstance(err, Rejected):
        return err
    if isinstance(err, InputError):
        return Rejected(input_status(err), str(err), kind=err.status)
    if isinstance(err, OverloadedError):
        return Rejected(503, str(err), headers=_retry_after(err.retry_after_s), kind="overloaded")
    if isinstance(err, NotReadyError):
        return not_ready(str(err))
    if isinstance(err, DeadlineError):
        return Rejected(504, str(err), kind="deadline")
    return Rejected(404, str(err)) if isinstance(err, UnknownModelError) else None


def input_status(err: InputError) -> int:
    """Return the HTTP status for an image that cannot be labelled and was alone in its request."""
    return {"too_large": 413, "unsupported": 415, "empty": 400}.get(err.status, 422)


def not_ready(message: str) -> Rejected:
    """Build the refusal of a request that came before the first inference had passed."""
    return Rejected(503, message, headers=_retry_after(1), kind="not_ready")


def _retry_after(seconds: float) -> tuple[tuple[bytes, bytes]]:
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def deadline_of(request: Request, default_s: float) -> float:
    """Return the `time.monotonic()` until which the client waits.

    Args:
        request: Its header `x-request-timeout-seconds` may shorten the deadline, not extend it.
        default_s: The configured deadline, seconds from now.

    Raises:
        Rejected: 400, the header is no positive number.
    """
    asked, ahead = request.headers.get(OWN_TIMEOUT_HEADER), 0.0
    if asked is None:
        asked, ahead = request.headers.get(TIMEOUT_HEADER), _ANSWER_AHEAD_S
    if asked is None:
        return time.monotonic() + default_s
    try:
        given = float(asked)
    except ValueError:
        given = math.nan
    if not 0 < given < math.inf:
        raise Rejected(400, f"{TIMEOUT_HEADER} must be a positive number of seconds, got {asked!r}")
    return time.monotonic() + min(default_s, given - ahead)


class JsonResponse(Response):
    """A value as JSON; of numpy's types, float32 is written with the fewest decimals that stand for it."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def error_response(rejected: Rejected) -> Response:
    """Return `{"error": ...}`, the one form of all errors."""
    # A lone surrogate (of a name in the request, say) has no UTF-8 form.
    text = str(rejected).encode(errors="replace").decode()
    response = JsonResponse({"error": text}, rejected.status, {"X-Content-Type-Options": "nosniff"})
    response.raw_headers += rejected.headers
    return response
