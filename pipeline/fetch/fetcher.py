"""Fetch images by their URIs: many at a time in one thread, returned in order, while the caller does other work."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

from yarl import URL

from pipeline.fetch.faults import FetchError, RefusedError
from pipeline.fetch.hosts import Hosts
from pipeline.fetch.job import Job, Memory, NoRoomError
from pipeline.fetch.places import Places, Stored
from pipeline.fetch.settings import FetchSettings
from pipeline.fetch.stored import read_file, read_object
from pipeline.fetch.web import Redirect, WebClient
from pipeline.quantities import many_text

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Images in flight, or waiting to be taken: enough that a slow host does not delay the others.
AHEAD = 256
AHEAD_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
MAX_TRIES = 4
FIRST_WAIT_S = 0.5
# Threads for name look-ups and file reads.
_THREADS = 32
_CLOSING_S = 5.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of fetching one image.

    Attributes:
        data: The image's bytes, or None where status and error say why not.
        sha256: Of the bytes, in hex.
    """

    data: bytes | None = None
    status: str | None = None
    error: str | None = None
    sha256: str | None = None


class Fetcher:
    """Fetches images. Use as a context manager, which closes all connections at its end.

    Args:
        settings: Limits of fetching.
        places: Resolves URIs.
        most: Maximum bytes of one image.
    """

    def __init__(self, settings: FetchSettings, places: Places, most: int) -> None:
        self._settings = settings
        self._places = places
        self._most = most
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(_THREADS, "fetch")
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetcher", daemon=True)

    def __enter__(self) -> Fetcher:
        self._thread.start()
        self._run(self._begin()).result()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(TimeoutError):
            self._run(self._end()).result(_CLOSING_S)
        self._threads.shutdown(wait=False, cancel_futures=True)  # a look-up may hang
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)
        if not self._loop.is_running():
            self._loop.close()

    def in_order(self, wanted: Iterable[tuple[T, str | None, int]]) -> Iterator[tuple[T, Fetched | None]]:
        """Yield each item with what was fetched for it, or with None if it has no URI; in order, some fetched ahead.

        Images in flight or waiting take at most AHEAD_BYTES and one image; items take at most AHEAD_BYTES and one item.

        Args:
            wanted: An item, its URI, and the bytes that the item holds.
        """
        iterator = iter(wanted)
        waiting: deque[tuple[T, int, int, Job, Future[Fetched] | None]] = deque()
        number = held = 0

        def fill() -> None:
            nonlocal number, held
            while len(waiting) < AHEAD and held < AHEAD_BYTES and (item := next(iterator, None)) is not None:
                job = Job(number, self._most, self._settings.timeout_s, self._memory)
                future = None if item[1] is None else self._run(self._fetch(item[1], job))
                waiting.append((item[0], item[2], number, job, future))
                number += 1
                held += item[2]

        fill()
        while waiting:
            one, size, place, job, future = waiting.popleft()
            yield one, None if future is None else future.result()
            self._loop.call_soon_threadsafe(self._taken, place, job)
            held -= size
            fill()

    def _run(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _begin(self) -> None:
        self._memory = Memory(AHEAD_BYTES)
        self._hosts = Hosts(self._settings)
        self._web = WebClient(allow_private=self._settings.allow_private_hosts)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._web.close()

    def _taken(self, number: int, job: Job) -> None:
        job.release()
        self._memory.taken(number)

    async def _fetch(self, uri: str, job: Job) -> Fetched:
        """Fetch one image, with retries. Any failure becomes a row, and does not end the unit."""
        try:
            place = self._places.find(uri.strip())
            tries = 0
            while True:
                try:
                    await job.begin()
                    data = await self._once(place, job)
                    job.settle()
                    return Fetched(data, sha256=sha256(data).hexdigest())
                except NoRoomError:
                    continue
                except FetchError as err:
                    tries += 1
                    await _wait(err, tries, job)
        except RefusedError as err:
            job.release()
            return Fetched(None, err.status, str(err))
        except FetchError as err:
            job.release()
            return Fetched(None, "unreachable", str(err))
        except Exception as err:
            logger.exception("fetching failed with an unexpected error")
            job.release()
            return Fetched(None, "unreachable", f"unexpected {type(err).__name__}")

    async def _once(self, place: URL | Stored, job: Job) -> bytes:
        if isinstance(place, Stored):
            if place.storage.is_local:
                async with job.timed():
                    return await read_file(place.name, job)
            async with self._hosts.bucket(place.storage.root_uri).turn(), job.timed():
                return await read_object(place.storage, place.name, job)
        for _ in range(MAX_REDIRECTS + 1):
            host = self._hosts.web(f"{place.host}:{place.port}")
            async with host.turn(), job.timed():
                got = await self._web.get(place, job, host)
            if not isinstance(got, Redirect):
                return got
            place = got.url
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")


async def _wait(err: FetchError, tries: int, job: Job) -> None:
    """Wait before the next try; raise if there is to be none."""
    job.release()
    wait = err.wait_s or FIRST_WAIT_S * 2 ** (tries - 1) * (0.5 + random.random() / 2)
    if not err.again or tries == MAX_TRIES or wait >= job.left_s:
        asked = f", asked to wait {err.wait_s:.0f} s" if err.wait_s else ""
        tried = f" ({many_text(tries, 'request')}{asked})" if err.again and (tries > 1 or asked) else ""
        raise FetchError(f"{err}{tried}") from err
    job.left_s -= wait
    await asyncio.sleep(wait)
