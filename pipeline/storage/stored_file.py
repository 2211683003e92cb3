"""Read a stored file at any place, retried where it stood, and never from two versions of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

from models.errors import StorageError
from pipeline.storage.location import FileStat, Location
from pipeline.storage.retries import DEFAULT_RETRY, RetryPolicy, retried


class StoredFile:
    """One version of a stored file, read at any place. Transient errors are retried; another version is an error.

    Args:
        storage: Where it is.
        name: The file.
        expected: Size and ETag that it was planned with.
        policy: How often to try.

    Raises:
        StorageError: It cannot be read, or has changed; says which file, and why.
    """

    def __init__(
        self, storage: Location, name: str, *, expected: FileStat | None = None, policy: RetryPolicy = DEFAULT_RETRY
    ) -> None:
        self._storage = storage
        self._shown = storage.describe(name)
        self._path = storage.path(name)
        self._policy = policy
        self._handle: Any = None
        self._version: tuple[int, str] | None = None
        self.retries = 0
        retried(f"read {self._shown}", self._open, policy)
        if expected is not None:
            self._check_planned(expected)

    @property
    def size(self) -> int:
        """Size in bytes."""
        assert self._version is not None
        return self._version[0]

    def read_at(self, offset: int, size: int) -> bytes:
        """Read size bytes from offset on; fewer only where the file ends."""
        size = max(0, min(size, self.size - offset))
        return retried(f"read {self._shown}", lambda: self._read(offset, size), self._policy) if size else b""

    def check_unchanged(self) -> None:
        """Raise StorageError where the file is another one than when it was opened."""

        def look() -> None:
            if not self._storage.is_local:
                self.close()  # an open one only knows what it was
            self._open()

        retried(f"read {self._shown}", look, self._policy)

    def close(self) -> None:
        """Release the file."""
        handle, self._handle = self._handle, None
        if isinstance(handle, int):
            os.close(handle)
        elif handle is not None:
            handle.close()

    def _open(self) -> None:
        if self._handle is None:
            if self._storage.is_local:
                self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            else:
                self._handle = self._storage.fs.open_input_file(self._path)
        version = _version(self._handle)
        if self._version is None:
            self._version = version
        elif version != self._version:
            how = _how(self._version[0], version[0])
            raise StorageError(f"{self._shown} changed while it was read: {how}")

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._handle is None:
                self._open()
            if isinstance(self._handle, int):
                content = _read_local(self._handle, offset, size)
            else:
                content = bytes(self._handle.read_at(size, offset))
        except OSError:
            self._drop()
            raise
        if len(content) < size:
            self._drop()
            raise TimeoutError(f"got {len(content)} of {size} bytes at byte {offset}")
        return content

    def _drop(self) -> None:
        self.retries += 1
        try:
            self.close()
        except OSError:
            self._handle = None

    def _check_planned(self, expected: FileStat) -> None:
        tag = _modified(self._handle)
        if self.size != expected.size or (tag and expected.etag and tag != expected.etag):
            how = _how(expected.size, self.size)
            raise StorageError(f"{self._shown} has changed since the run was planned: {how}")


def _how(was: int, now: int) -> str:
    return f"its size was {was} bytes and is {now}" if was != now else "it was written anew"


def _read_local(descriptor: int, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more  # a signal, or a network disk, can cut a read short
    return content


def _version(handle: Any) -> tuple[int, str]:  # noqa: ANN401 (a descriptor, or pyarrow's file)
    """Return the size of an open file, and what changes when its content does."""
    if isinstance(handle, int):
        stat = os.fstat(handle)
        return stat.st_size, f"{stat.st_mtime_ns:x}"
    metadata = handle.metadata() or {}
    tag = metadata.get("ETag", metadata.get("Last-Modified", b""))
    return handle.size(), bytes(tag).decode("ascii", "replace")


def _modified(handle: Any) -> str:  # noqa: ANN401 (likewise)
    """Return an open file's ETag as a listing gives it (see `FileStat`); "" where it does not tell."""
    if isinstance(handle, int):
        return f"{os.fstat(handle).st_mtime_ns:x}"
    text = bytes((handle.metadata() or {}).get("Last-Modified", b"")).decode("ascii", "replace")
    try:
        return f"{int(datetime.fromisoformat(text).timestamp()):x}"
    except ValueError:
        return ""


class RandomFile:
    """A stored file for readers that jump about, as Parquet's: what pyarrow asks of a Python file."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._position = 0
        self.closed = False
        self.bytes_read = 0
        # pyarrow may wrap what `read` raises in an error of its own, which would pass for a damaged file.
        self.failure: StorageError | None = None
        # Bytes that one read may ask for.
        self.most: int | None = None
        # Called with the position and the bytes of each read, before anybody else sees them.
        self.watch: Callable[[int, bytes], None] | None = None

    def read(self, size: int = -1) -> bytes:
        """Read size bytes from the position on."""
        size = self._file.size if size is None or size < 0 else size
        if self.most is not None and size > self.most:
            raise ValueError(f"{size} bytes are asked for at once; {self.most} are allowed")
        try:
            content = self._file.read_at(self._position, size)
        except StorageError as err:
            self.failure = err
            raise
        if self.watch is not None:
            self.watch(self._position, content)
        self._position += len(content)
        self.bytes_read += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position."""
        self._position = offset + (0, self._position, self._file.size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def size(self) -> int:
        """Return the size in bytes."""
        return self._file.size

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def writable(self) -> bool:
        """Tell that it cannot be written."""
        return False

    def seekable(self) -> bool:
        """Tell that it can jump."""
        return True

    def check_unchanged(self) -> None:
        """Raise StorageError where the file is another one than when it was opened."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Release the file."""
        self.closed = True
        self._file.close()
