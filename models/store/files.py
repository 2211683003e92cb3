"""The cache of model files: paths, verification, and atomic writes.

    $SHARDLABEL_HOME (~/.cache/shardlabel)
    └── artifacts/<sha256>/             by content: two versions of a name never collide
        ├── <file>                      verified before it got this name
        ├── <file>.verified             the state at the last check: size, times, inode
        ├── <file>.part, .part.etag     an interrupted download, to be resumed
        └── <file>.lock                 held by the one process that writes here

A start does not hash a file again that an earlier start verified, unless the file was touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from models.errors import ArtifactError, ConfigError
from models.spec import Artifact

Progress = Callable[[int, int], None]
"""Called with (bytes done, total bytes)."""

HOME_VARIABLE = "SHARDLABEL_HOME"
# Writers touch their temporary file all the time: one this old was left by a killed process.
STALE_TEMPORARY_S = 600.0


def home() -> Path:
    """Return the folder of everything cached: `$SHARDLABEL_HOME`, or `~/.cache/shardlabel`.

    Raises:
        ConfigError: `~` cannot be resolved, as for a container's user without a home folder.
    """
    folder = Path(os.environ.get(HOME_VARIABLE) or "~/.cache/shardlabel")
    try:
        return folder.expanduser().absolute()
    except RuntimeError as err:
        raise ConfigError(f"cannot tell where {folder} is ({err}); set {HOME_VARIABLE} to a folder") from err


def artifact_path(artifact: Artifact) -> Path:
    """Return an artifact's path in the cache, whether or not the file exists."""
    return home() / "artifacts" / artifact.sha256 / artifact.file


def is_file(path: Path) -> bool:
    """Tell whether the path is a file; false if the folder may not be searched."""
    try:
        return path.is_file()
    except OSError:
        return False


def verify_file(
    path: Path, artifact: Artifact, *, remedy: str = "delete it and run `shardlabel models pull` again"
) -> None:
    """Check a file's size, then its SHA-256 (0.1 s for 50 MB).

    Raises:
        ArtifactError: The file is missing, unreadable, or differs from the entry.
    """
    try:
        before = path.stat()
        if before.st_size != artifact.size_bytes:
            raise ArtifactError(f"{path} has {before.st_size} bytes, expected {artifact.size_bytes}; {remedy}")
        digest = file_sha256(path)
    except OSError as err:
        raise ArtifactError(f"cannot read {path}: {err.strerror or err}; {remedy}") from err
    if digest != artifact.sha256:
        raise ArtifactError(f"{path} has SHA-256 {digest}, expected {artifact.sha256}; {remedy}")
    if path.is_relative_to(home()):
        # Only in the cache, never beside a user's file. Without the stamp the next start hashes again.
        with contextlib.suppress(OSError):
            _stamp_path(path).write_text(_stamp(before, artifact), encoding="ascii")


def verify_once(path: Path, artifact: Artifact, remedy: str) -> None:
    """Verify a file, unless it has not changed since the last check."""
    try:
        if _stamp_path(path).read_text(encoding="ascii") == _stamp(path.stat(), artifact):
            return
    except (OSError, UnicodeDecodeError):
        pass
    verify_file(path, artifact, remedy=remedy)


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _stamp(stat: os.stat_result, artifact: Artifact) -> str:
    # The ctime too: it changes even if a writer resets the mtime.
    return f"{artifact.sha256} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}\n"


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits; reads the file in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is synced and renamed to `path` when the block ends; removed on any error.

    Raises:
        ArtifactError: The disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_temporaries(path)
        try:
            with temporary.open("xb") as file:
                yield file
            rename_synced(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def rename_synced(temporary: Path, path: Path) -> None:
    """Sync a complete file and rename it, so that a power cut leaves all of it or nothing."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into an ArtifactError that says what to do."""
    try:
        yield
    except OSError as err:
        raise ArtifactError(f"cannot write {path}: {_write_advice(path, err)}") from err


def _write_advice(path: Path, err: OSError) -> str:
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(path.parent).free // 10**6} MB free"
        return f"the disk is full ({err.strerror}{free}); free some space, or set {HOME_VARIABLE} to a larger disk"
    if err.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{err.strerror}; set {HOME_VARIABLE} to a writable folder"
    return str(err)


def _remove_stale_temporaries(path: Path) -> None:
    oldest = time.time() - STALE_TEMPORARY_S
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime < oldest:
                leftover.unlink()
