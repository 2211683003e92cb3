"""Whether a file that SOURCE names lies in DEST, whatever either is called: a run may replace and delete files there."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from models.errors import SourceError
from pipeline.sources.unit import part_number
from pipeline.storage.storage import Storage

# Links that lead to links; more are a circle.
_MAX_LINKS = 40


class Overlap:
    """Tells which files of SOURCE lie in DEST.

    Disks are compared by real paths, links followed. Object storage is compared by bucket and path alone: the same
    bucket has many endpoints (a name, its address, a proxy), and keys and options say nothing. Where two buckets of one
    name and two servers are meant, the folders within them have to differ.

    Args:
        base: The folder that names of SOURCE are relative to.
        dest: DEST.
    """

    def __init__(self, base: Storage, dest: Storage) -> None:
        self._base = base
        self._shown = dest.describe()
        self.passed_over = ""  # a clause about a file that was, for an error where nothing is left
        self._comparable = _kind(base) == _kind(dest)
        self._dest = (os.path.realpath(dest.root) if dest.is_local else _object(dest.root)).rstrip("/") + "/"

    def refuse(self, path: str) -> None:
        """Raise where a file that SOURCE names lies in DEST.

        Raises:
            SourceError: It does; the message says what to do.
        """
        if self._within(path) is not None:
            raise SourceError(
                f"SOURCE names {path}, which lies in DEST {self._shown}, where a run replaces files; give an --output "
                "that holds nothing of SOURCE"
            )

    def is_output(self, path: str) -> bool:
        """Tell whether a file that was come upon in a folder of SOURCE is named as a run's own; refuse others of DEST."""
        within = self._within(path)
        if within is None:
            return False
        if part_number(within) is None:
            self.refuse(path)
        self.passed_over = (
            f"; {path} is passed over, as it lies in DEST {self._shown}: give another --output to label it"
        )
        return True

    def _within(self, path: str) -> str | None:
        """Return a file's name below DEST, or None where it lies elsewhere."""
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
    """Return bucket and path in the one form that is compared: servers differ in what `//` and `..` mean to them."""
    bucket, _, name = path.partition("/")
    if name and "//" not in path and "/." not in path:
        return f"{bucket.casefold()}/{name}"  # nearly all of millions
    return f"{bucket.casefold()}{posixpath.normpath('/' + name.lstrip('/'))}"


def _places(path: str) -> Iterator[str]:
    """Yield where a local file lies, and, of a link, each place that it leads over."""

    def places(path: str) -> Iterator[str]:
        while True:
            folder, name = posixpath.split(path)
            yield posixpath.join(_real(folder), name)
            try:
                path = posixpath.join(_real(folder), os.readlink(path))  # noqa: PTH115 (of each of millions of files)
            except OSError:  # it is no link
                return

    return islice(places(path), _MAX_LINKS)


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
