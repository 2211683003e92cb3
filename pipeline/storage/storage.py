"""Local disks and object stores in one form: retried reads, and writes that appear whole or not at all."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from obstore.exceptions import AlreadyExistsError, PreconditionError

from models.errors import SourceError, StorageError
from pipeline.storage.local_disk import Listing, list_folder, put_in_place, remove_stale, stat_file
from pipeline.storage.location import FileStat, Location, Version, etag_of
from pipeline.storage.object_listing import ObjectListing, list_one_folder
from pipeline.storage.odd_keys import NO_FOLDER, is_path
from pipeline.storage.retries import DEFAULT_RETRY, RetryPolicy, is_missing, reason, retried
from pipeline.storage.stored_file import RandomFile, StoredFile
from pipeline.storage.stores import SILENCE_S, open_store, split_location
from pipeline.storage.streams import RetryingStream
from pipeline.storage.uris import display_uri

T = TypeVar("T")

# In DEST, so that a rename never crosses from one disk to another; readers skip names that begin with "_".
TEMPORARY_FOLDER = "_shardlabel/tmp"
# An upload that is slower than this has stalled.
_SLOWEST_UPLOAD = 2**20  # bytes a second
_LARGE_UPLOAD_S = 600.0
# How often to try to replace an object that others write meanwhile.
_REPLACEMENTS = 5
# Objects of a page of a listing, which one request brings.
_PAGE = 1000


@dataclass(frozen=True)
class Storage(Location):
    """A storage and a folder in it, to list, read and write. Paths given to its methods are relative to that folder."""

    def stat(self, name: str = "") -> FileStat | None:
        """Return a file's size and ETag, or None if there is no such file."""
        if self.is_local:
            return retried(f"look up {self.describe(name)}", lambda: stat_file(name, self.path(name)))
        if not self.key(name) or self.unreadable(name):
            return None

        def look() -> FileStat | None:
            try:
                store, key = self.object(name)
                return _stat_object(name, store.head(key))
            except FileNotFoundError:
                return None

        return retried(f"look up {self.describe(name)}", look)

    def is_folder(self, name: str = "") -> bool:
        """Tell whether a folder (or, on object storage, any object below the name) exists."""
        if self.is_local:
            return retried(f"look up {self.describe(name)}", lambda: Path(self.path(name)).is_dir())
        return is_path(self.key(name)) and any(True for _ in self.pages(name, most=1))

    def list(self, name: str = "", *, recursive: bool = False) -> list[FileStat]:
        """List the files of a folder, sorted by path; [] if there is no such folder. All are in memory at once."""
        if recursive and not self.is_local:
            return [file for page in self.pages(name) for file in page]
        files, folders = self.list_folder(name)
        if recursive:
            files += [file for folder in folders for file in self.list(folder, recursive=True)]
        return sorted(files, key=lambda file: file.path)

    def list_folder(self, name: str = "") -> Listing:
        """List the files and the folders of a folder, each sorted by path."""
        if self.is_local:
            return retried(f"list {self.describe(name)}", lambda: list_folder(name, self.path(name)))
        if not self.can_list:
            return [], []
        found = self._listed(name, lambda: list_one_folder(self, self.key(name)))
        if found is None:
            return [], []
        below = len(self.key()) + 1 if self.key() else 0
        files = [_stat_object(meta["path"][below:], meta) for meta in found[0]]
        folders = [path[below:] for path in found[1]]
        return sorted(files, key=lambda file: file.path), sorted(folders)

    def pages(self, name: str = "", *, most: int = _PAGE) -> Iterator[Sequence[FileStat]]:
        """Yield the objects below a folder of an object store, in path order, at most `most` at a time.

        Raises:
            SourceError: The folder's name is not a path.
            StorageError: It cannot be listed.
        """
        if not self.can_list:
            return
        below = len(self.key()) + 1 if self.key() else 0
        listing = ObjectListing(self, self.key(name), most)
        while page := self._listed(name, listing.page):
            yield [_stat_object(meta["path"][below:], meta) for meta in page]

    def _listed(self, name: str, operation: Callable[[], T]) -> T | None:
        """Run a listing operation; return None if there is no such bucket."""
        if not is_path(self.key(name)):
            raise SourceError(f"cannot list {self.describe(name)}: {NO_FOLDER}")
        try:
            return retried(f"list {self.describe(name)}", operation)
        except StorageError as err:
            if is_missing(err.__cause__):
                return None
            raise

    def read_bytes(self, name: str) -> bytes:
        """Read a small file whole."""
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes, Version | None]:
        """Read a small file whole, with its version, which is None on a local disk."""
        if self.is_local:
            with closing(StoredFile(self, name)) as file:
                return file.read_at(0, file.size), None

        def read() -> tuple[bytes, Version]:
            store, key = self.object(name)
            result = store.get(key)
            return result.bytes().to_bytes(), Version.of(result.meta)

        return retried(f"read {self.describe(name)}", read)

    def open_stream(
        self,
        name: str,
        *,
        expected: FileStat | None = None,
        span: tuple[int, int] = (0, -1),
        policy: RetryPolicy = DEFAULT_RETRY,
    ) -> RetryingStream:
        """Open a file for reading from front to back, or only the bytes of a span; see `RetryingStream`.

        Raises:
            StorageError: It cannot be read, or its size or ETag is not the expected one.
        """
        return RetryingStream(self, name, expected=expected, span=span, policy=policy)

    def open_random(self, name: str, *, expected: FileStat | None = None) -> RandomFile:
        """Open a file for random access, as Parquet needs; otherwise like `open_stream`."""
        return RandomFile(StoredFile(self, name, expected=expected))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file in one step: a reader sees all of it or, before that, what was there or nothing."""
        if not self.is_local:
            self._put(name, content, "overwrite")
            return
        temporary = self.temporary_path()
        try:
            temporary.write_bytes(content)
        except OSError as err:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"cannot write {self.describe(name)}: {reason(err)}") from err
        self.publish(temporary, name)

    def create(self, name: str, content: bytes) -> None:
        """Write a small file that is not there yet.

        Raises:
            StorageError: It cannot be written; in an object store also if it exists with other content.
        """
        if self.is_local:
            self.write_bytes(name, content)
        elif self.put_if(name, content, None) is None:
            raise StorageError(f"cannot write {self.describe(name)}: another run has just written it")

    def put_if(self, name: str, content: bytes, before: Version | None) -> Version | None:
        """Write an object only if it has not changed: compare and swap.

        Args:
            name: Its name; on an object store only.
            content: After a lost response, equal content counts as written, even if another writer wrote it.
            before: The version that must be there; None for no object.

        Returns:
            The version that is there now; None if another writer was first.
        """
        mode = "create" if before is None else {name: tag for name, tag in asdict(before).items() if tag is not None}
        try:
            return self._put(name, content, mode)
        except StorageError as err:
            # An object to be replaced may be gone; for a new object, it is the bucket that is missing.
            is_gone = before is not None and isinstance(err.__cause__, FileNotFoundError)
            if not is_gone and not isinstance(err.__cause__, (AlreadyExistsError, PreconditionError)):
                raise
        try:
            there, version = self.read_version(name)
        except StorageError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                return None
            raise
        return version if there == content else None

    def temporary_path(self) -> Path:
        """Return a path on a local disk for a file that `publish` then moves to its place."""
        if not self.is_local:
            remove_stale()
            return Path(tempfile.gettempdir()) / f"shardlabel-{uuid.uuid4().hex}.tmp"
        folder = Path(self.path(TEMPORARY_FOLDER))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StorageError(f"cannot write {self.describe()}: {reason(err)}") from err
        return folder / f"{uuid.uuid4().hex}.tmp"

    def publish(self, temporary: Path, name: str, check: Callable[[], None] = lambda: None) -> None:
        """Move a finished local file to its place, in one step.

        Args:
            temporary: See `temporary_path`.
            name: Its place.
            check: Raises if this process may no longer write. An existing object is replaced only if it is as it was
                before the check: what another process writes later stays.
        """
        try:
            check()
            if self.is_local:
                put_in_place(temporary, Path(self.path(name)))
            else:
                self._replace(name, temporary.read_bytes(), check)
        except OSError as err:
            raise StorageError(f"cannot write {self.describe(name)}: {reason(err)}") from err
        finally:
            temporary.unlink(missing_ok=True)

    def _replace(self, name: str, content: bytes, check: Callable[[], None]) -> None:
        before: Version | None = None
        for _ in range(_REPLACEMENTS):
            if self.put_if(name, content, before) is not None:
                return
            before = self._version(name)
            check()
        raise StorageError(f"cannot write {self.describe(name)}: other processes keep writing it")

    def _version(self, name: str) -> Version | None:
        def look() -> Version | None:
            with suppress(FileNotFoundError):
                return Version.of(self.store.head(self._own_key(name)))
            return None

        return retried(f"look up {self.describe(name)}", look)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                Path(self.path(name)).unlink() if self.is_local else self.store.delete(self._own_key(name))

        retried(f"delete {self.describe(name)}", remove)

    def _own_key(self, name: str) -> str:
        """Return the key of an object that a run writes."""
        key = self.key(name)
        if not is_path(key):
            raise SourceError(
                f"cannot write {self.describe(name)}: expected a name without `//`, `.`, `..` and control characters; "
                "choose another"
            )
        return key

    def _put(self, name: str, content: bytes, mode: Any) -> Version:  # noqa: ANN401 (obstore's PutMode)
        """Write an object with one PUT: it appears only when it is complete."""
        is_small = len(content) <= SILENCE_S * _SLOWEST_UPLOAD
        store = self.store if is_small else open_store(self.root_uri, _LARGE_UPLOAD_S)

        def put() -> Version:
            return Version.of(store.put(self._own_key(name), content, mode=mode, use_multipart=False))

        return retried(f"write {self.describe(name)}", put)


def _stat_object(name: str, meta: Any) -> FileStat:  # noqa: ANN401 (obstore's ObjectMeta)
    return FileStat(name, meta["size"], etag_of(meta), meta["last_modified"].timestamp())


def open_storage(uri: str) -> Storage:
    """Open a local path or a URI: s3://, gs://, az:// (abfss://), file://, and http(s)://, which is read-only.

    `s3://` honours AWS_ENDPOINT_URL, the usual credentials, and the query options of pyarrow's URI form. Nothing is
    looked up yet.

    Raises:
        SourceError: The URI is malformed, or its scheme or an option is unknown.
    """
    root_uri, root = split_location(uri)
    if root_uri:
        open_store(root_uri)
    return Storage(root, display_uri(uri), root_uri)


def iter_lines(storage: Storage, name: str) -> Iterator[str]:
    """Yield the lines of a text file, one at a time, without line ends; reads it in pieces.

    Invalid UTF-8 becomes surrogates, as in Python's own file names.
    """
    rest = b""
    first = True
    with storage.open_stream(name) as stream:
        while piece := stream.read(2**20):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield _text(line, first=first)
                first = False
    if rest:
        yield _text(rest, first=first)


def _text(line: bytes, *, first: bool) -> str:
    text = line.removesuffix(b"\r").decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff") if first else text
