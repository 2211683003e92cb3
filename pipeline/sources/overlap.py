"""Whether a file that SOURCE names is in DEST, whatever either is called: a run may replace and delete files there."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from models.errors import SourceError
from pipeline.sources.unit import part_number
from pipeline.storage.storage import Storage

# Maximum number of links from one to the next; more are a loop.
_MAX_LINKS = 40


class Overlap:
    """Tells which files of SOURCE are in DEST.

    Disks are compared by real paths, links followed. Object storage is compared by bucket and path alone: the same
    bucket has many endpoints (a name, its address, a proxy), and credentials and options say nothing. If two servers
    have buckets of one name, the folders in them have to differ.

    Args:
        base: The folder that names of SOURCE are relative to.
        dest: DEST.
    """

    def __init__(self, base: Storage, dest: Storage) -> None:
        self._base = base
        self._shown = dest.describe()
        self.passed_over = ""  # a clause about a skipped file, for the error if no file is left
        self._comparable = _kind(base) == _kind(dest)
        self._dest = (os.path.realpath(dest.root) if dest.is_local else _object(dest.root)).rstrip("/") + "/"

    def refuse(self, path: str) -> None:
        """Raise if a file that SOURCE names is in DEST.

        Raises:
            SourceError: It is; the message says what to do.
        """
        if self._within(path) is not None:
            raise SourceError(
                f"SOURCE names {path}, which lies in DEST {self._shown}, where a run replaces files; give an --output "
                "that holds nothing of SOURCE"
            )

    def is_output(self, path: str) -> bool:
        """Tell whether a file found in a folder of SOURCE is a part file in DEST; refuse other files of DEST."""
        within = self._within(path)
        if within is None:
            return False
        if part_number(within) is None:
            self.refuse(path)
        self.passed_over = f"; {path} is skipped, as it is in DEST {self._shown}: give another --output to label it"
        return True

    def _within(self, path: str) -> str | None:
        """Return a file's name in DEST, or None if it is elsewhere."""
        if not self._comparable:
            return None
        whole = self._base.path(path)
        for place in _places(whole) if self._base.is_local else (_object(whole),):
            if place.startswith(self._dest):
                return place.removeprefix(self._dest)
        return None


def _kind(storage: Storage) -> str:
    scheme = storage.root_uri.partition("://")[0]
    return "gs" if scheme == "gcs" else scheme


def _object(path: str) -> str:
    """Return bucket and path in one form, to compare them: servers differ in what `//` and `..` mean to them."""
    bucket, _, name = path.partition("/")
    if name and "//" not in path and "/." not in path:
        return f"{bucket.casefold()}/{name}"  # nearly all paths, of which there are millions
    return f"{bucket.casefold()}{posixpath.normpath('/' + name.lstrip('/'))}"


def _places(path: str) -> Iterator[str]:
    """Yield where a local file is and, for a link, each place that it leads through."""

    def places(path: str) -> Iterator[str]:
        while True:
            folder, name = posixpath.split(path)
            yield posixpath.join(_real(folder), name)
            try:
                path = posixpath.join(_real(folder), os.readlink(path))  # noqa: PTH115 (of each of millions of files)
            except OSError:  # it is not a link
                return

    return islice(places(path), _MAX_LINKS)


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
