"""A retry in Serve's own proxy, for a request whose replica died with it.

HAProxy sends such a request to another replica. Where there is none, HAProxy sends it to Serve's own proxy, which may not
know yet that the replica is dead. The proxy then hands the request to that replica, and ends without an answer, of which
its HTTP server makes a 500 in plain text. By then it knows: a retry waits for the replica's successor.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import NotReadyError
from serve.http.asgi import error_response, rejection

# As HAProxy: requests up to this are held until they are answered.
HELD_BYTES = 512 * 1024


class RetryOnce:
    """ASGI middleware around Serve's proxy: retry a request that ended without an answer once, or answer it 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        held: list[Message] = []
        size, is_settled = 0, False

        async def hold() -> Message:
            nonlocal size, is_settled
            message = await receive()
            is_settled |= message["type"] == "http.disconnect"  # nobody waits
            size += len(message.get("body", b""))
            held.append(message)
            if size > HELD_BYTES:
                held.clear()
            return message

        async def read_again() -> Message:
            return held.pop(0) if held else await receive()

        async def answer(message: Message) -> None:
            nonlocal is_settled
            is_settled = True
            await send(message)

        for read in (hold, read_again):
            if not is_settled and size <= HELD_BYTES:
                await self._app(dict(scope), read, answer)
        if not is_settled:
            gone = NotReadyError("the replica that had this request died; try again")
            await error_response(rejection(gone, scope["path"]))(scope, receive, send)
        return None
