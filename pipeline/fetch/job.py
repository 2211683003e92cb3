"""One image in flight: the time that it has left, and the bytes that all images in flight may hold together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.fetch.faults import FetchError


class NoRoomError(Exception):
    """There is no memory for an image now: its connection is released, and it is requested again when there is."""


class Memory:
    """Bounds the bytes of all images that are in flight or wait to be taken. Used in one event loop.

    The image to be taken next always gets what it needs, and none waits for memory while it holds a connection, so
    there is no deadlock. The total is at most `budget` and one image.

    Args:
        budget: Maximum bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._next = 0  # number of the image that is to be taken next
        self._changed = asyncio.Event()

    def has_room(self, number: int, size: int) -> bool:
        """Tell whether an image, by its number, may take `size` more bytes now."""
        return number <= self._next or self._held + size <= self._budget

    async def room(self, number: int, size: int) -> None:
        """Wait until it may."""
        while not self.has_room(number, size):
            self._changed.clear()
            await self._changed.wait()

    def hold(self, size: int) -> None:
        """Add bytes to the total; a negative size releases them."""
        self._held += size
        if size < 0:
            self._changed.set()

    def taken(self, number: int) -> None:
        """Note that an image, by its number, was taken, and that the next one is due."""
        self._next = number + 1
        self._changed.set()


class Job:
    """The fetching of one image.

    Args:
        number: Its place in the order in which images are taken.
        most: Maximum bytes of the image.
        seconds: Maximum time to fetch it.
        memory: Shared by all images.
    """

    def __init__(self, number: int, most: int, seconds: float, memory: Memory) -> None:
        self.most = most
        self.left_s = seconds
        self._seconds = seconds
        self._number = number
        self._memory = memory
        self._held = 0  # bytes counted in the memory
        self._used = 0
        self._wanted = 1  # bytes to wait for, after there was no room

    @asynccontextmanager
    async def timed(self) -> AsyncIterator[None]:
        """Count the time of the block against the image's.

        Raises:
            FetchError: The time is up.
        """
        now = asyncio.get_running_loop().time
        ends = now() + self.left_s
        try:
            async with asyncio.timeout_at(ends):
                yield
        except TimeoutError as err:
            raise FetchError(f"not all there within {self._seconds:g} s", again=True) from err
        finally:
            self.left_s = max(0.0, ends - now())

    async def begin(self) -> None:
        """Wait, before a request, until there is room for the bytes that it needs."""
        self.release()
        await self._memory.room(self._number, self._wanted)
        self._memory.hold(self._wanted)
        self._held = self._wanted

    def hold(self, size: int, whole: int | None = None) -> None:
        """Count bytes that have arrived.

        Args:
            size: How many.
            whole: Size of the whole image, if known.

        Raises:
            NoRoomError: There is no room for them.
        """
        self._used += size
        if (more := self._used - self._held) > 0:
            if not self._memory.has_room(self._number, more):
                self._wanted = whole or self.most
                raise NoRoomError
            self._memory.hold(more)
            self._held += more

    def settle(self) -> None:
        """Release bytes that were counted and did not arrive."""
        self._memory.hold(self._used - self._held)
        self._held = self._used

    def release(self) -> None:
        """Release all bytes of the image."""
        self._memory.hold(-self._held)
        self._held = self._used = 0
