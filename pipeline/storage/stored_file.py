"""Read a stored file at any position, with retries from there, and never from two versions of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from obstore.exceptions import BaseError, PreconditionError

from models.errors import StorageError
from pipeline.storage.location import FileStat, Location, etag_of
from pipeline.storage.retries import DEFAULT_RETRY, RetryPolicy, retried, status_of


class StoredFile:
    """One version of a stored file, read at any position. Transient errors are retried; another version is an error.

    Args:
        storage: Where it is.
        name: The file.
        expected: Size and ETag that it was planned with. An object's are compared with its first response, which saves
            a request for them.
        policy: How often and how long to retry.

    Raises:
        StorageError: It cannot be read, or has changed; the message says which file, and why.
    """

    def __init__(
        self, storage: Location, name: str, *, expected: FileStat | None = None, policy: RetryPolicy = DEFAULT_RETRY
    ) -> None:
        self._storage = storage
        self._name = name
        self._shown = storage.describe(name)
        self._policy = policy
        self._planned = expected
        self._known: FileStat | None = None
        self._descriptor: int | None = None  # of a local file
        self._condition: dict[str, str] = {}  # a request's condition, which another version of an object does not meet
        self.retries = 0
        if storage.is_local or expected is None or not expected.size:
            retried(f"read {self._shown}", self._look, policy)

    @property
    def size(self) -> int:
        """Size in bytes."""
        found = self._known or self._planned
        assert found is not None
        return found.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Read size bytes from offset on; fewer only at the end of the file."""
        size = max(0, min(size, self.size - offset))
        return retried(f"read {self._shown}", lambda: self._read(offset, size), self._policy) if size else b""

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield an object from offset to its end in pieces of at least size bytes, but for the last; one request."""
        stream: Iterator[bytes] | None = None

        def more() -> bytes:
            nonlocal stream
            try:
                stream = stream or iter(self._get({"offset": offset} if offset else None).stream(size))
                if piece := next(stream, b""):
                    return piece
                raise TimeoutError(f"the answer ended at byte {offset} of {self.size}")
            except (OSError, BaseError) as err:
                self.retries += 1
                stream = None
                self._explain(err)
                raise

        while offset < self.size:
            piece = retried(f"read {self._shown}", more, self._policy)
            offset += len(piece)
            yield piece

    def check_unchanged(self) -> None:
        """Raise StorageError where the file is another one than when it was opened."""
        retried(f"read {self._shown}", self._look, self._policy)

    def close(self) -> None:
        """Release the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _look(self) -> None:
        if self._storage.is_local:
            if self._descriptor is None:
                self._descriptor = os.open(self._storage.path(self._name), os.O_RDONLY | os.O_CLOEXEC)
            stat = os.fstat(self._descriptor)
            self._check(FileStat(self._name, stat.st_size, f"{stat.st_mtime_ns:x}"))
        else:
            store, key = self._storage.object(self._name)
            self._check_meta(store.head(key))

    def _check_meta(self, meta: Mapping[str, Any]) -> None:
        self._check(FileStat(self._name, meta["size"], etag_of(meta)))
        tag = meta["e_tag"]
        if tag and not tag.startswith("W/"):  # a weak one meets no condition
            self._condition = {"if_match": tag}

    def _check(self, found: FileStat) -> None:
        """Compare what is there with what was planned, or seen before."""
        before = self._known or self._planned
        if before and (found.size != before.size or (found.etag != before.etag and found.etag and before.etag)):
            self._changed(before.size, found.size)
        self._known = found

    def _changed(self, was: int, now: int) -> NoReturn:
        when = "changed while it was read" if self._known else "has changed since the run was planned"
        how = f"its size was {was} bytes and is {now}" if was != now else "it was rewritten"
        raise StorageError(f"{self._shown} {when}: {how}")

    def _get(self, range_: object) -> Any:  # noqa: ANN401 (obstore's GetResult cannot be imported)
        options = {**({"range": range_} if range_ else {}), **self._condition}
        try:
            store, key = self._storage.object(self._name)
            result = store.get(key, options=options)
        except BaseError as err:
            self._explain(err)
            raise
        self._check_meta(result.meta)
        return result

    def _explain(self, err: Exception) -> None:
        """If a request failed because the object has changed, raise an error that says so."""
        if status_of(err) in ("412", "416") or isinstance(err, PreconditionError):  # condition, range
            self._look()
            self._changed(self.size, self.size)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._storage.is_local:
                if self._descriptor is None:
                    self._look()
                assert self._descriptor is not None
                content = _read_local(self._descriptor, offset, size)
            else:
                content = self._get((offset, offset + size) if size < self.size else None).bytes().to_bytes()
            if len(content) < size:
                raise TimeoutError(f"got {len(content)} of {size} bytes at byte {offset}")
        except (OSError, BaseError):
            self.retries += 1
            self.close()
            raise
        return content


def _read_local(descriptor: int, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more  # a signal, or a network disk, can cut a read short
    return content


class RandomFile:
    """A stored file for random access, as by readers of Parquet: what pyarrow needs of a Python file."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._position = 0
        self.closed = False
        self.bytes_read = 0
        # pyarrow may wrap what `read` raises in an error of its own, which would look like a damaged file.
        self.failure: StorageError | None = None
        # Maximum bytes of one read.
        self.most: int | None = None
        # Called with the position and the bytes of each read, before the caller gets them.
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
