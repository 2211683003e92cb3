"""Limits per host: requests at a time and per second, the waits that it asked for, and when to give it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pipeline.fetch.faults import FetchError, RefusedError
from pipeline.fetch.job import NoRoomError
from pipeline.fetch.settings import FetchSettings

# Connections of one process to all hosts together.
CONNECTIONS = 64
# Connections to one bucket: an object store serves more at a time than a web server.
BUCKET_CONNECTIONS = 16
# After so many tries in a row that fail because of the host, its other rows of the unit fail at once. Otherwise a
# thousand rows of a host that drops packets would take an hour.
MAX_FAILURES = 24


class Host:
    """One web host, or one bucket.

    Args:
        connections: Maximum connections to it at a time.
        requests_per_second: None for no limit.
        longest_wait_s: Longest wait that it may ask for.
        all_connections: Limits the connections to all hosts together.
    """

    def __init__(
        self,
        connections: int,
        requests_per_second: float | None,
        longest_wait_s: float,
        all_connections: asyncio.Semaphore,
    ) -> None:
        self._own = asyncio.Semaphore(connections)
        self._all = all_connections
        self._interval_s = 1 / requests_per_second if requests_per_second else 0.0
        self._longest_wait_s = longest_wait_s
        self._next_at = 0.0
        self._failures = 0
        self._given_up = ""
        self._waiting = 0

    @property
    def is_wanted(self) -> bool:
        """Whether other requests wait for a turn, so that a connection is worth keeping."""
        return self._waiting > 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and note the outcome of the request.

        Raises:
            FetchError: The host was given up.
        """
        self._waiting += 1
        try:
            await self._own.acquire()
        finally:
            self._waiting -= 1
        try:
            self._check()
            await self._pause()
            self._check()  # other requests may have failed meanwhile
            async with self._all:
                try:
                    yield
                except FetchError as err:
                    self._failed(err)
                    raise
                except (RefusedError, NoRoomError):
                    self._failures = 0
                    raise
                self._failures = 0
        finally:
            self._own.release()

    def _check(self) -> None:
        if self._given_up:
            raise FetchError(f"the host was given up: {self._given_up}")

    async def _pause(self) -> None:
        now = asyncio.get_running_loop().time()
        begins = max(now, self._next_at)
        self._next_at = begins + self._interval_s
        if begins > now:
            await asyncio.sleep(begins - now)

    def _failed(self, err: FetchError) -> None:
        self._failures = self._failures + 1 if err.again else 0
        if self._given_up:
            return
        if self._failures >= MAX_FAILURES:
            self._given_up = f"{err}, {self._failures} times in a row"
        elif err.again and err.wait_s:
            if err.wait_s > self._longest_wait_s:
                self._given_up = f"{err}, and it asks to wait {err.wait_s:.0f} s"
            else:
                self._next_at = max(self._next_at, asyncio.get_running_loop().time() + err.wait_s)


class Hosts:
    """All hosts that a unit names. Create it within an event loop."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._connections = asyncio.Semaphore(CONNECTIONS)
        self._hosts: dict[str, Host] = {}

    def web(self, name: str) -> Host:
        """Return a web host by its name and port."""
        s = self._settings
        return self._of(name, s.connections_per_host, s.requests_per_second)

    def bucket(self, name: str) -> Host:
        """Return a bucket by its URI."""
        return self._of(name, BUCKET_CONNECTIONS, None)

    def _of(self, name: str, connections: int, rate: float | None) -> Host:
        if name not in self._hosts:
            self._hosts[name] = Host(connections, rate, self._settings.timeout_s, self._connections)
        return self._hosts[name]
