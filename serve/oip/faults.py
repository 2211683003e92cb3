"""Requests that cannot be answered as asked: how they are refused, and with which status over gRPC."""

from __future__ import annotations

import reprlib

from models.errors import InputError
from serve.http.asgi import Rejected, input_status

# From HTTP's status to the name of gRPC's. Over the size limit is RESOURCE_EXHAUSTED, as gRPC itself says of a message
# over its own; a full queue is UNAVAILABLE, which clients may retry.
GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


def malformed(message: str) -> Rejected:
    """Build the refusal of a request that breaks the protocol, or does not fit the model."""
    return Rejected(400, message)


def bad_image(index: int, err: InputError) -> Rejected:
    """Build the refusal of a request one of whose images cannot be labelled: the protocol has no status per image."""
    return Rejected(input_status(err), f"image {index}: {err}", kind=err.status)


def shown(value: object) -> str:
    """Show what a caller sent, briefly, however long it is."""
    return "nothing" if value is None else _BRIEF.repr(value)
