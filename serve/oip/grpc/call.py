"""One message of a call: where it came from, and its line in the access log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from serve.http.trace_context import trace_field
from serve.oip.grpc.service import PATHS


class Context(Protocol):
    """What is used of `ray.serve.grpc_util.RayServegRPCContext`, and of gRPC's own."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status that the caller gets."""

    def set_details(self, details: str) -> None:
        """Set its text."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """Set what is sent after the answer."""

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return what the caller sent beside the message."""

    def peer(self) -> str:
        """Return who is at the other end of the connection, as `ipv4:127.0.0.1:50000`."""


class Message(Protocol):
    """What Ray Serve asks of an answer."""

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """Return the message's bytes."""


@dataclass(slots=True)
class Call:
    """One message of a call.

    Attributes:
        rpc: One of `service.PATHS`.
        request: As sent.
        context: Of the call.
        id: Of the request, once it is parsed.
        model: That it is for, once it is parsed; None for none, or for one that is not there.
    """

    rpc: str
    request: bytes
    context: Context
    id: str = ""
    model: str | None = None

    def line(self, status: int, seconds: float, kind: str | None) -> dict[str, Any]:
        """Return its line in the access log."""
        metadata = self.context.invocation_metadata()
        sent = dict(metadata)
        return {
            "client": _client(self.context.peer(), sent.get("x-forwarded-for")),
            "method": "gRPC",
            "path": PATHS[self.rpc],
            "status": status,
            "ms": round(1000 * seconds, 2),
            "bytes": len(self.request),
            "request_id": sent.get("x-request-id", ""),
            **trace_field([value for name, value in metadata if name == "traceparent"]),
            **({"error": kind} if kind else {}),
        }


def _client(peer: str, forwarded: str | None) -> str:
    """Return the caller's address: a HAProxy of this machine says whose call it passes on; others might lie."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    is_here = address.removeprefix("::ffff:").startswith("127.") or address == "::1"
    return forwarded if forwarded and is_here else address
