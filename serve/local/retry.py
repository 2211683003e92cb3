"""A second try in Serve's own proxy, for a request whose replica died with it.

HAProxy sends such a request to another replica, and where there is none to Serve's own proxy, which may not know yet that
the replica is dead: it hands the request to it, and ends without an answer, of which its HTTP server makes a 500 in plain
text. By then it knows. So the request is handed to it once more, to wait for the replica's successor.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.asgi import Rejected, error_response

# As HAProxy: requests up to this are held until they are answered.
HELD_BYTES = 512 * 1024


class RetryOnce:
    """ASGI middleware: a request that ended without an answer is tried once more, and else answered 503.

    Args:
        app: Serve's proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = _Request(receive, send)
        await self._app(dict(scope), request.receive, request.send)
        if not request.is_settled and request.rewind():
            await self._app(dict(scope), request.receive, request.send)
        if not request.is_settled:
            text = "the replica that had this request died; try again"
            await error_response(Rejected(503, text, headers=((b"retry-after", b"1"),)))(scope, receive, send)
        return None


class _Request:
    """What came of a request so far, so that it can be read again; and whether anything was answered."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._held: list[Message] = []
        self._again: list[Message] = []
        self._bytes = 0
        self.is_settled = False

    async def receive(self) -> Message:
        if self._again:
            return self._again.pop(0)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_settled = True  # nobody waits
        elif self._bytes <= HELD_BYTES:
            self._bytes += len(message.get("body", b""))
            self._held.append(message)
            if self._bytes > HELD_BYTES:
                self._held.clear()
        return message

    async def send(self, message: Message) -> None:
        self.is_settled = True
        await self._send(message)

    def rewind(self) -> bool:
        """Begin to read from the start; False where that is no longer there."""
        self._again = [*self._held]
        return self._bytes <= HELD_BYTES
