"""Read stored files from front to back, in pieces, without ever holding more than two of them.

Memory: a local stream holds 1 MiB; a remote one two pieces of 4 MiB, one that is read and one in flight.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

from models.errors import SourceError
from pipeline.storage.location import FileStat, Location
from pipeline.storage.retries import DEFAULT_RETRY, RetryPolicy
from pipeline.storage.stored_file import StoredFile

T = TypeVar("T")

# All pieces come from one request, which waits while nothing is read.
REMOTE_PIECE_BYTES = 4 * 2**20
# To skip fewer bytes costs more than to read them: a new request, and the wait for it.
SKIPPED_BYTES = 8 * 2**20
LOCAL_PIECE_BYTES = 2**20


class ReadsForward(Protocol):
    """What can become a ForwardStream: anything with `read`."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to size bytes."""


class ForwardStream:
    """Bytes that come in pieces, read from front to back."""

    def __init__(self) -> None:
        self._piece = b""
        self._at = 0
        self._start = 0  # position of the piece's first byte

    def _more(self) -> bytes:
        """Return the next piece, b"" at the end."""
        raise NotImplementedError

    def _skip(self, size: int) -> int:
        """Skip bytes after the piece without reading them; return how many."""
        return 0

    def read(self, size: int = -1) -> bytes:
        """Read size bytes (all with -1); fewer only at the end."""
        end = self._at + size
        if size >= 0 and end <= len(self._piece):
            content = self._piece[self._at : end]
            self._at = end
            return content
        parts = []
        wanted = size
        while wanted != 0:
            part = self._piece[self._at :] if wanted < 0 else self._piece[self._at : self._at + wanted]
            self._at += len(part)
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
            if wanted != 0 and not self._advance():
                break
        return b"".join(parts)

    def seek(self, position: int) -> int:
        """Go forward; return the position reached, which is less only at the end.

        Raises:
            SourceError: It is before the current one.
        """
        if position < self.tell():
            raise SourceError(f"cannot go back from byte {self.tell()} to {position}")
        while (ahead := position - self._start) > len(self._piece):
            self._at = len(self._piece)
            skipped = self._skip(ahead - len(self._piece))
            if skipped:
                self._start, self._piece, self._at = self.tell() + skipped, b"", 0
            elif not self._advance():
                return self.tell()
        self._at = ahead
        return position

    def tell(self) -> int:
        """Return the position in bytes from the beginning."""
        return self._start + self._at

    def skip_zeros(self, step: int) -> int:
        """Skip whole steps of zero bytes in the current piece; return how many bytes."""
        rest = self._piece[self._at :]
        zeros = (len(rest) - len(rest.lstrip(b"\0"))) // step * step
        self._at += zeros
        return zeros

    def close(self) -> None:
        """Release what is held."""

    def __enter__(self) -> ForwardStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _advance(self) -> bool:
        """Replace the used piece by the next; False at the end."""
        piece = self._more()
        if piece:
            self._start, self._piece, self._at = self.tell(), piece, 0
        return bool(piece)


class FileForward(ForwardStream):
    """Any file object as a ForwardStream."""

    def __init__(self, file: ReadsForward) -> None:
        super().__init__()
        self._file = file

    def _more(self) -> bytes:
        return self._file.read(LOCAL_PIECE_BYTES)


class RetryingStream(ForwardStream):
    """A stored file from front to back. Remote storage sends the next piece while this one is used.

    No rows are made of two versions: all of an object's responses are of one version, and the end of a local file is
    reached only if it is still the file that was opened.

    Args:
        storage: Holds it.
        name: Name of the file.
        expected: Size and ETag that it was planned with.
        span: Its first byte, and one past its last; -1 for the file's end. Positions count from the file's beginning.
        policy: How often and how long to retry.
    """

    def __init__(
        self,
        storage: Location,
        name: str,
        *,
        expected: FileStat | None = None,
        span: tuple[int, int] = (0, -1),
        policy: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        super().__init__()
        self._file = StoredFile(storage, name, expected=expected, policy=policy)
        self._is_local = storage.is_local
        self._start = self._next = span[0]  # position of the piece to ask for next
        self._stop = self._file.size if span[1] < 0 else span[1]
        self._ahead: Generator[bytes, None, None] | None = None

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._file.size

    @property
    def retries(self) -> int:
        """How often the file had to be reopened."""
        return self._file.retries

    def close(self) -> None:
        """Release the file; a request in flight ends by itself."""
        self._forget()
        self._file.close()

    def _more(self) -> bytes:
        if self._is_local:
            piece = self._file.read_at(self._next, min(LOCAL_PIECE_BYTES, self._stop - self._next))
            if not piece:
                self._file.check_unchanged()
        else:
            self._ahead = self._ahead or one_ahead(self._file.pieces(self._next, REMOTE_PIECE_BYTES))
            piece = next(self._ahead, b"")[: self._stop - self._next]
        self._next += len(piece)
        return piece

    def _skip(self, size: int) -> int:
        size = min(size, self._stop - self._next)
        if not self._is_local and size < SKIPPED_BYTES:
            return 0  # it is in flight
        self._forget()
        self._next += size
        return size

    def _forget(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def one_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield items while a thread makes the next one: reading continues while the last item is used."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        coming = thread.submit(lambda: list(islice(items, 1)))
        while item := coming.result():
            coming = thread.submit(lambda: list(islice(items, 1)))
            yield item[0]
    finally:
        thread.shutdown(wait=False)
