"""Local disk, S3, GCS and Azure through pyarrow: retried reads, and writes that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from models.errors import StorageError
from pipeline.storage.filesystems import open_filesystem, open_to_delete, split_location
from pipeline.storage.location import FileStat, Location
from pipeline.storage.retries import DEFAULT_RETRY, RetryPolicy, reason, retried
from pipeline.storage.stored_file import RandomFile, StoredFile
from pipeline.storage.streams import RetryingStream
from pipeline.storage.uris import display_uri

# Below DEST, so that a rename never crosses from one disk to another; readers skip names that begin with "_".
TEMPORARY_FOLDER = "_shardlabel/tmp"
# What a killed process left in the machine's own temporary folder is removed once it is so old.
_STALE_S = 24 * 3600


Listing = tuple[list[FileStat], list[str]]


@dataclass(frozen=True)
class Storage(Location):
    """A filesystem and a folder in it, to list, read and write. Paths given to its methods are relative to that folder."""

    def stat(self, name: str = "") -> FileStat | None:
        """Return a file's size and ETag, or None where there is no such file."""
        if self.is_local:
            return retried(f"look up {self.describe(name)}", lambda: _stat_local(name, self.path(name)))
        info = self._info(name)
        return self._file_stat(name, info) if info.type == pafs.FileType.File else None

    def is_folder(self, name: str = "") -> bool:
        """Tell whether a folder (or, on object storage, any object below the name) is there."""
        if self.is_local:
            return retried(f"look up {self.describe(name)}", lambda: Path(self.path(name)).is_dir())
        return bool(self._info(name).type == pafs.FileType.Directory)

    def list(self, name: str = "", *, recursive: bool = False) -> list[FileStat]:
        """List the files of a folder, sorted by path; [] where there is no such folder. All are in memory at once."""
        files, _ = self.list_folder(name, recursive=recursive)
        return files

    def list_folder(self, name: str = "", *, recursive: bool = False) -> Listing:
        """List the files and the folders of a folder, each sorted by path."""
        selector = pafs.FileSelector(self.path(name), allow_not_found=True, recursive=recursive)
        infos = retried(f"list {self.describe(name)}", lambda: self.fs.get_file_info(selector))
        prefix = self.root.rstrip("/") + "/" if self.root.rstrip("/") else ""
        files, folders = [], []
        for info in infos:
            path = info.path.removeprefix(prefix)
            if info.type == pafs.FileType.File:
                files.append(self._file_stat(path, info))
            elif info.type == pafs.FileType.Directory:
                folders.append(path)
        return sorted(files, key=lambda file: file.path), sorted(folders)

    def read_bytes(self, name: str) -> bytes:
        """Read a small file whole."""
        # Not by a stream of pyarrow's: it asks for 256 kB at a time.
        file = StoredFile(self, name)
        try:
            return file.read_at(0, file.size)
        finally:
            file.close()

    def open_stream(
        self, name: str, *, expected: FileStat | None = None, policy: RetryPolicy = DEFAULT_RETRY
    ) -> RetryingStream:
        """Open a file for reading from its beginning to its end; transient errors are retried where it stood.

        Raises:
            StorageError: It cannot be read, or has other size or ETag than expected.
        """
        return RetryingStream(self, name, expected=expected, policy=policy)

    def open_random(self, name: str, *, expected: FileStat | None = None) -> RandomFile:
        """Open a file for random access, as Parquet needs; otherwise like `open_stream`."""
        return RandomFile(StoredFile(self, name, expected=expected))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file: after this a reader sees all of it, and before it what was there, or nothing."""
        if not self.is_local:
            self._upload(content, name)
            return
        temporary = self.temporary_path()
        try:
            temporary.write_bytes(content)
        except OSError as err:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"cannot write {self.describe(name)}: {reason(err)}") from err
        self.publish(temporary, name)

    def temporary_path(self) -> Path:
        """Return a path on a local disk for a file that `publish` then puts in its place."""
        if not self.is_local:
            _remove_stale()
            return Path(tempfile.gettempdir()) / f"shardlabel-{uuid.uuid4().hex}.tmp"
        folder = Path(self.path(TEMPORARY_FOLDER))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StorageError(f"cannot write {self.describe()}: {reason(err)}") from err
        return folder / f"{uuid.uuid4().hex}.tmp"

    def publish(self, temporary: Path, name: str) -> None:
        """Put a finished local file in its place, in one step, and remove it where it was."""
        try:
            if self.is_local:
                _rename(temporary, Path(self.path(name)))
            else:
                self._upload(temporary.read_bytes(), name)
        except OSError as err:
            raise StorageError(f"cannot write {self.describe(name)}: {reason(err)}") from err
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens where there is none."""
        fs, path = open_to_delete(self.root_uri, self.path(name))

        def remove() -> None:
            with suppress(FileNotFoundError):
                fs.delete_file(path)

        retried(f"delete {self.describe(name)}", remove)

    def _file_stat(self, path: str, info: Any) -> FileStat:  # noqa: ANN401 (pyarrow has no types)
        modified = info.mtime_ns
        if modified is not None and not self.is_local:
            # pyarrow gives 0 where it cannot parse a listing's time: that is no time at all.
            modified = modified // 10**9 or None
        return FileStat(path, int(info.size), "" if modified is None else f"{modified:x}")

    def _info(self, name: str) -> Any:  # noqa: ANN401 (pyarrow has no types)
        return retried(f"look up {self.describe(name)}", lambda: self.fs.get_file_info(self.path(name)))

    def _upload(self, content: bytes, name: str) -> None:
        """Write an object: one PUT, or the parts of one upload; it appears when the last of them is in."""

        def put() -> None:
            # pyarrow has no abort: a stream completes its object when it is closed, and its destructor closes it. After
            # an error between two writes the half would become the object; so there is one, of all there is.
            with self.fs.open_output_stream(self.path(name)) as stream:
                stream.write(content)

        # Not in the main thread: there Ctrl-C could come between opening and writing, and leave an empty object.
        _off_main_thread(lambda: retried(f"write {self.describe(name)}", put))


def open_storage(uri: str) -> Storage:
    """Open a local path or a URI that pyarrow's filesystems know (s3://, gs://, abfss://, file://).

    `s3://` honours AWS_ENDPOINT_URL, the usual credentials, and the query options of pyarrow's URI form. Nothing is
    looked up yet.

    Raises:
        SourceError: The URI is malformed, or its scheme or an option is unknown.
        StorageError: The storage does not answer.
    """
    root_uri, root = split_location(uri)
    open_filesystem(root_uri)
    return Storage(root, display_uri(uri), root_uri)


def iter_lines(storage: Storage, name: str) -> Iterator[str]:
    """Yield the lines of a text file, one at a time, without their ends; reads it in pieces.

    Bytes that are no UTF-8 become surrogates, as in Python's own file names.
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


def _stat_local(name: str, path: str) -> FileStat | None:
    # Not through pyarrow: it refuses names that are no UTF-8, which a look-up must be able to answer.
    try:
        found = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            return None
        raise
    return FileStat(name, found.st_size, f"{found.st_mtime_ns:x}") if stat.S_ISREG(found.st_mode) else None


def _rename(temporary: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _off_main_thread(operation: Callable[[], None]) -> None:
    """Run something that no signal may cut in two. An interrupt leaves at once; the process ends after it."""
    if threading.current_thread() is not threading.main_thread():
        operation()
        return
    failures: list[Exception] = []

    def run() -> None:
        try:
            operation()
        except Exception as err:  # noqa: BLE001 (raised below, in the thread that asked)
            failures.append(err)

    thread = threading.Thread(target=run, name="upload")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@cache
def _remove_stale() -> None:
    """Remove what killed processes left in the temporary folder a day ago or longer. Once per process."""
    for path in Path(tempfile.gettempdir()).glob("shardlabel-*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
