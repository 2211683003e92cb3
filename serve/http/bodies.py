"""Request bodies: one memory budget for all, a deadline to read each, unpacking and parsing off the event loop."""

from __future__ import annotations

import asyncio
import binascii
import reprlib
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from models.errors import DeadlineError, OverloadedError
from serve.http.asgi import IN_FLIGHT, Rejected

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

# A body up to this size is parsed on the event loop, in less than 1 ms; a thread would cost a tenth of that.
INLINE_BYTES = 32 * 1024
_PIECE_BYTES = 2**20
# zlib's, by Content-Encoding; None where nothing is packed.
_WINDOW_BITS = {"": None, "identity": None, "gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}
# Before each value of JSON but the first, and before each key, stands one of these.
_BEFORE_A_VALUE = tuple(b",:[{")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60
# One thread: what unpacking or parsing takes for a while, beside what is counted, is then taken once. More threads would
# wait for the interpreter's lock.
_TURNS = ThreadPoolExecutor(1, thread_name_prefix="bodies")


class BodyMemory:
    """The bytes that all requests of a process hold: their bodies as sent, unpacked and parsed, over HTTP and gRPC.

    Thread-safe. The limit is of all together, bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0
        self.lock = threading.Lock()

    def check(self, size: int) -> None:
        """Raise OverloadedError where `size` more bytes would not fit now."""
        if self.used + size > self._limit:
            raise OverloadedError(
                f"overloaded: the requests in progress have {self.used:,} bytes, this one wants {size:,} more, and "
                f"max_body_memory is {self._limit:,}; try again later",
                retry_after_s=1.0,
            )


class Held:
    """The share of one request in the budget."""

    __slots__ = ("_is_closed", "_size", "memory")

    def __init__(self, memory: BodyMemory) -> None:
        self.memory = memory
        self._size = 0
        self._is_closed = False

    def set(self, size: int) -> None:
        """Set the share, in bytes, or raise OverloadedError and leave it as it was."""
        with self.memory.lock:
            if self._is_closed:
                # Ends a thread that still parses a request whose client has gone.
                raise ClientDisconnect
            if size > self._size:
                self.memory.check(size - self._size)
            self.memory.used += size - self._size
            self._size = size

    def close(self) -> None:
        """Give all of it back, for good."""
        with self.memory.lock:
            self.memory.used -= self._size
            self._size = 0
            self._is_closed = True


async def off_the_loop(deadline: float, call: Callable[[], T]) -> T:
    """Run a call that takes milliseconds in a thread, one call at a time.

    Raises:
        DeadlineError: `deadline`, by `time.monotonic()`, passed first.
    """
    # Not through the future, which asyncio puts into a cycle: a body would wait for the garbage collector.
    outcome: list[T | Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as err:  # noqa: BLE001 (raised below)
            outcome.append(err)

    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.get_running_loop().run_in_executor(_TURNS, run)
    except TimeoutError:
        raise DeadlineError("the deadline passed before the request was read") from None
    result = outcome.pop()
    if isinstance(result, Exception):
        raise result
    return result


async def read_body(
    request: Request, max_bytes: int, deadline: float, parse: Callable[[bytes], T], inline_bytes: int = INLINE_BYTES
) -> T:
    """Read a whole request body, undo its Content-Encoding (gzip or deflate), and parse it.

    Args:
        request: Its body is not read yet.
        max_bytes: Limit on the body, both as it was sent and unpacked.
        deadline: `time.monotonic()` until which it has to be there.
        parse: Called with the body, in a thread where the body is packed or large. One turn of the thread unpacks and
            parses a body, so that no unpacked body waits for a turn.
        inline_bytes: Largest body that is parsed on the event loop.

    Raises:
        Rejected: 413, it is larger; 415, another encoding; 400, the packed data are broken; or as `parse` raises it.
        OverloadedError: The bodies in progress fill the budget.
        DeadlineError: The body did not arrive in time.
        ClientDisconnect: The client went away in the middle.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in _WINDOW_BITS:
        raise Rejected(415, f"Content-Encoding must be gzip, deflate or identity, got {encoding[:40]!r}")
    window_bits = _WINDOW_BITS[encoding]
    held: Held = request.scope[IN_FLIGHT].held
    announced = request.scope[IN_FLIGHT].size or 0
    if announced > max_bytes:
        raise _too_many_bytes(announced, max_bytes)
    held.memory.check(announced)
    try:
        async with asyncio.timeout_at(deadline):
            body = await _received(request, max_bytes, held)
    except TimeoutError:
        raise DeadlineError("the deadline passed before the request had arrived") from None
    if window_bits is None and len(body) <= inline_bytes:
        return parse(body)
    return await off_the_loop(deadline, lambda: parse(_unpacked(body, window_bits, max_bytes, held)))


async def _received(request: Request, max_bytes: int, held: Held) -> bytes:
    # Not by `request.stream`: its generator takes 4 microseconds.
    parts: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_many_bytes(size, max_bytes)
        held.set(size)
        has_more = message.get("more_body", False)
    return b"".join(parts)  # a body that came in one piece is not copied


def _too_many_bytes(got: int, max_bytes: int) -> Rejected:
    text = f"the request has at least {got:,} bytes; max_request_bytes is {max_bytes:,}"
    return Rejected(413, text, kind="too_large")


def _unpacked(body: bytes, window_bits: int | None, max_bytes: int, held: Held) -> bytes:
    """Unpack no more than is allowed: a few kilobytes may unpack to gigabytes."""
    if window_bits is None:
        return body
    if window_bits == zlib.MAX_WBITS and body and (body[0] & 0x0F) != 8:
        window_bits = -zlib.MAX_WBITS  # raw deflate, which some clients send under that name
    machine = zlib.decompressobj(window_bits)
    try:
        unpacked = machine.decompress(body, max_bytes + 1)
    except zlib.error as err:
        raise Rejected(400, f"the body does not unpack by its Content-Encoding: {err}") from err
    if len(unpacked) > max_bytes:
        raise _too_many_bytes(len(unpacked), max_bytes)
    if not machine.eof or machine.unused_data:
        raise Rejected(400, "the body does not unpack by its Content-Encoding: it ends early, or data follow its end")
    held.set(len(body) + len(unpacked))
    return unpacked


def load_json(body: bytes | memoryview, most_values: int) -> Any:  # noqa: ANN401 (whatever JSON has)
    """Parse JSON of at most `most_values` values: each takes up to 100 bytes, and parsing holds the interpreter's lock.

    Commas, colons and opening brackets in strings count as values too; base64 has none.

    Raises:
        Rejected: 413, there are more values; 400, it is not JSON.
    """
    if len(body) > max(INLINE_BYTES, most_values):
        every = np.frombuffer(body, np.uint8)
        values = 1
        for start in range(0, len(every), _PIECE_BYTES):
            piece = every[start : start + _PIECE_BYTES]
            values += sum(int(np.count_nonzero(piece == mark)) for mark in _BEFORE_A_VALUE)
            if values > most_values:
                raise Rejected(413, f"the JSON has more than {most_values:,} values and keys", kind="too_many_values")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise Rejected(400, f"the body is not JSON: {str(err)[:120]}") from None


def validated(kind: type[M], document: object) -> M:
    """Check a request in its JSON form, or raise `Rejected`, 400: where, what was expected, and what is there."""
    try:
        return kind.model_validate(document)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:40]}" for step in first["loc"]]
    place = "".join(steps).removeprefix(".")[:100] or "the request"
    raise Rejected(400, f"{place}: {first['msg'].removeprefix('Value error, ')}; got {shown(first['input'])}")


def shown(value: object) -> str:
    """Show what a caller sent, briefly, however long it is."""
    return "nothing" if value is None else _BRIEF.repr(value)


def from_base64(text: str) -> bytes:
    """Decode base64; the text may have line breaks, as the command base64 writes them.

    Raises:
        ValueError: It is not base64.
    """
    return binascii.a2b_base64(text.encode("ascii").translate(None, b" \t\r\n"), strict_mode=True)
