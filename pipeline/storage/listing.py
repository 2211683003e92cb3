"""List folders in path order, and look up files by name, with few calls and little memory."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from typing import TypeVar

from models.errors import StorageError
from pipeline.storage.location import FileStat
from pipeline.storage.odd_keys import is_path
from pipeline.storage.retries import reason
from pipeline.storage.storage import Storage

S = TypeVar("S")
T = TypeVar("T")

# Calls to remote storage in flight.
CALLS_AHEAD = 8
# Files of one remote folder that are looked up one by one, before the whole folder is listed.
SINGLE_LOOKUPS = 8
# Files in the listings that are kept while a list jumps between folders: some 200 MB.
FILES_KEPT = 500_000
_LOOKUP_BATCH = 256
# Instead of an ETag: the file's name is not UTF-8, and is escaped in the plan.
NO_UTF_8 = "not UTF-8"


def visible_name(name: str) -> str:
    r"""Return the name of a local file with each byte of invalid UTF-8 escaped, as in `caf\xe9.jpg`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(storage: Storage, folder: str = "", *, enter: Callable[[str], bool] = lambda path: True) -> Iterator[FileStat]:
    """Yield every file below a folder in path order. Lazy.

    Args:
        storage: Paths are relative to its folder.
        folder: Where to begin.
        enter: Whether to list the folder of that path. On remote storage it is not called for folders further down.
    """
    if storage.is_local:
        yield from _LocalWalk(storage, folder, enter).below(folder)
        return
    below = len(folder) + 1 if folder else 0
    for page in storage.pages(folder):
        for file in page:
            first, slash, _ = file.path[below:].partition("/")
            if not slash or enter(file.path[: below + len(first)]):
                yield file


class _LocalWalk:
    """Walk folders of a local disk; links to other folders are followed, but no folder is listed twice."""

    def __init__(self, storage: Storage, folder: str, enter: Callable[[str], bool]) -> None:
        self._storage = storage
        self._enter = enter
        self._real = os.path.realpath(storage.path(folder) or "/")
        # Folders where a walk begins: the path by which each was reached, by its real path.
        self._begun = {self._real: folder}
        self._followed: set[tuple[int, int]] = set()  # those that were entered through a link

    def below(self, folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[FileStat]:
        try:
            with os.scandir(self._storage.path(folder) or "/") as entries:
                found = sorted(((e.name + "/" if _is_folder(e) else e.name), e) for e in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as err:
            raise StorageError(f"cannot list {self._storage.describe(folder)}: {reason(err)}") from err
        for name, entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat()
            except OSError:
                yield FileStat(path, -1, "")  # a broken link, or one to itself; or deleted a moment ago
                continue
            own = (status.st_dev, status.st_ino)
            if not name.endswith("/"):
                if entry.is_file():
                    yield FileStat(path, status.st_size, f"{status.st_mtime_ns:x}")
            elif own not in above and self._enter(path) and self._is_new(entry, path, own):
                yield from self.below(path, above | {own})

    def _is_new(self, entry: os.DirEntry[str], path: str, own: tuple[int, int]) -> bool:
        """Tell whether a folder is listed nowhere else, at its own place or through another link."""
        if own in self._followed:
            return False
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if f"{self._real}/".startswith(f"{real.rstrip('/')}/") or self._is_entered(real):
                return False
            self._followed.add(own)
            self._begun[real] = path
        return True

    def _is_entered(self, real: str) -> bool:
        """Tell whether a folder is below one that is walked, and is not skipped there."""
        parts: list[str] = []
        while real not in self._begun:
            real, _, last = real.rpartition("/")
            if not last:
                return False
            parts.insert(0, last)
        begin = self._begun[real]
        paths = accumulate([begin, *parts] if begin else parts, "{}/{}".format)
        return all(self._enter(path) for path in paths if len(path) > len(begin))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def ahead(
    items: Iterable[S],
    work: Callable[[S], T],
    *,
    calls: int = CALLS_AHEAD,
    weight: Callable[[S], int] = lambda item: 0,
    budget: int = 0,
) -> Iterator[T]:
    """Yield work(item) of each item, in order, with several calls in flight.

    Args:
        items: Taken as they are needed.
        work: Called in threads.
        calls: Maximum number in flight.
        weight: Weight of an item; those in flight together weigh no more than `budget`, unless one alone does.
        budget: See `weight`.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(calls, thread_name_prefix="storage")
    waiting: deque[tuple[Future[T], int]] = deque()
    load = 0
    coming = list(islice(iterator, 1))
    try:
        while coming or waiting:
            while coming and len(waiting) < calls:
                heavy = weight(coming[0])
                if waiting and load + heavy > budget:
                    break
                waiting.append((pool.submit(work, coming[0]), heavy))
                load += heavy
                coming = list(islice(iterator, 1))
            future, heavy = waiting.popleft()
            load -= heavy
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Lookup:
    """Find files by name. Remote storage is asked for listings of their folders: one call per folder, not per file.

    If the names jump between so many folders that their listings cannot be kept, the rest is looked up one by one,
    several at a time.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._listings: dict[str, dict[str, FileStat]] = {}
        self._kept = 0
        self._singles: Counter[str] = Counter()

    def find(self, paths: Iterable[str]) -> Iterator[tuple[str, FileStat | None]]:
        """Yield each path with its file, or None where there is none, in order."""
        if self._storage.is_local:
            yield from ((path, self._storage.stat(path)) for path in paths)
            return
        iterator = iter(paths)
        while batch := list(islice(iterator, _LOOKUP_BATCH)):
            folders = [path.rpartition("/")[0] for path in batch]
            self._list(folders)
            single = [path for path, folder in zip(batch, folders, strict=True) if folder not in self._listings]
            looked_up = dict(zip(single, ahead(single, self._storage.stat), strict=True))
            for path, folder in zip(batch, folders, strict=True):
                listing = self._listings.get(folder)
                yield path, looked_up[path] if listing is None else listing.get(path.rpartition("/")[2])

    def _list(self, folders: list[str]) -> None:
        """List those of the folders from which enough files were requested."""
        self._singles.update(folder for folder in folders if folder not in self._listings)
        often = [folder for folder in dict.fromkeys(folders) if self._singles[folder] > SINGLE_LOOKUPS]
        wanted = [folder for folder in often if is_path(self._storage.key(folder))]
        if wanted and self._kept < FILES_KEPT:
            for folder, files in zip(wanted, ahead(wanted, self._storage.list, calls=2), strict=True):
                self._listings[folder] = {file.path.rpartition("/")[2]: file for file in files}
                self._kept += len(files)
                del self._singles[folder]
        if len(self._singles) > FILES_KEPT:
            self._singles.clear()
