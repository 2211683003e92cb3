"""Files and folders of a local disk."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.storage.location import FileStat

# Age from which files that a killed process left in the machine's temporary folder are removed.
_STALE_S = 24 * 3600

Listing = tuple[list[FileStat], list[str]]


def stat_file(name: str, path: str) -> FileStat | None:
    """Return a file's size and the time of its last write, or None if there is no such file."""
    try:
        found = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            return None
        raise
    if not stat.S_ISREG(found.st_mode):
        return None
    return FileStat(name, found.st_size, f"{found.st_mtime_ns:x}", found.st_mtime)


def list_folder(name: str, path: str) -> Listing:
    """List the files and the folders of a folder, each sorted; empty if there is no such folder."""
    files, folders = [], []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:
            shown = f"{name}/{entry.name}" if name else entry.name
            with suppress(FileNotFoundError):
                if entry.is_dir():
                    folders.append(shown)
                elif (found := stat_file(shown, entry.path)) is not None:
                    files.append(found)
    return sorted(files, key=lambda file: file.path), sorted(folders)


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a file, so that it and its new name are on the disk when this returns."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@cache
def remove_stale() -> None:
    """Remove what killed processes left in the temporary folder at least a day ago. Runs once per process."""
    for path in Path(tempfile.gettempdir()).glob("shardlabel-*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
