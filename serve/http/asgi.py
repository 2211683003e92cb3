"""What every route needs: deadlines, answers in JSON, and the status of each error.

A route is Starlette's: it takes a request and returns a response. It may raise `Rejected`, or an error of
`models.errors`: `serve.http.application` turns them into `{"error": ...}`, by the one table in `rejection`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import Annotated

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from models.errors import DeadlineError, InferenceError, InputError, NotReadyError, OverloadedError, UnknownModelError

logger = logging.getLogger(__name__)

OWN_TIMEOUT_HEADER = "x-shardlabel-timeout-seconds"
# Ray Serve's own name for it; see `deadline_of`. HAProxy passes it on under another, which Serve does not look at.
TIMEOUT_HEADER = "x-request-timeout-seconds"
TIMEOUT = {
    TIMEOUT_HEADER: Annotated[float, Field(gt=0, description="A shorter deadline than the endpoint's own, seconds.")]
}
IN_FLIGHT = "shardlabel.in_flight"  # in a request's scope: its `serve.http.in_flight.InFlight`
# Serve too gives up at the time that the header names, with an answer that is no JSON: ours comes just before.
_ANSWER_AHEAD_S = 0.02


class Rejected(Exception):  # noqa: N818 (an answer, not a fault)
    """The answer to this request is an error.

    Args:
        status: HTTP status, 400 to 599.
        message: For the caller: what, got, expected. Never a path of this machine.
        headers: Headers of the answer.
        kind: Name of the error in the metrics; by default the status.
    """

    def __init__(
        self, status: int, message: str, *, headers: Iterable[tuple[bytes, bytes]] = (), kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.kind = kind or str(status)


def rejection(err: Exception, path: str) -> Rejected:
    """Return the answer to a request that failed; log an error that is no `Rejected` and none of `models.errors`."""
    # The traceback refers to frames that refer to the error: a body of 20 MB would wait for the garbage collector.
    traceback, err.__traceback__ = err.__traceback__, None
    match err:
        case Rejected():
            return err
        case InputError():
            return Rejected(input_status(err), str(err), kind=err.status)
        case OverloadedError():
            seconds = max(1, math.ceil(err.retry_after_s))
            return Rejected(503, str(err), headers=[(b"retry-after", b"%d" % seconds)], kind="overloaded")
        case NotReadyError():
            return Rejected(503, str(err), headers=[(b"retry-after", b"1")], kind="not_ready")
        case DeadlineError():
            return Rejected(504, str(err), kind="deadline")
        case UnknownModelError():
            return Rejected(404, str(err))
    # Its text may name files of this machine.
    logger.error("request failed path=%s", path, exc_info=(type(err), err, traceback))
    text = "the model failed on this request" if isinstance(err, InferenceError) else "internal error"
    return Rejected(500, f"{text}; the server's log says why", kind="internal")


def input_status(err: InputError) -> int:
    """Return the HTTP status for an image that cannot be labelled and was alone in its request."""
    return {"too_large": 413, "unsupported": 415, "empty": 400}.get(err.status, 422)


def whole_number(text: str) -> int | None:
    """Read a whole number of up to 18 decimal digits; None where the text is another."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def deadline_of(request: Request, default_s: float) -> float:
    """Return the `time.monotonic()` until which the client waits: `default_s` from now, or less where a header says so.

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
    """Return `{"error": ...}`, the form of every error."""
    # A lone surrogate (of a name in the request, say) has no UTF-8 form.
    text = str(rejected).encode(errors="replace").decode()
    response = JsonResponse({"error": text}, rejected.status, {"X-Content-Type-Options": "nosniff"})
    response.raw_headers += rejected.headers
    return response
