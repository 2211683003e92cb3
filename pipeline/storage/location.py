"""A place in a storage, and a file there, as all of `pipeline.storage` knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.storage.filesystems import open_filesystem


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file as its storage lists it.

    Attributes:
        path: Relative to the storage's folder.
        size: In bytes; -1 for a broken link.
        etag: What changes when the content does. pyarrow's listings carry no ETag of S3's, so this is the time of the
            last write: in ns on a disk, in s elsewhere, where a listing knows ms and a HEAD only s.
    """

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Location:
    """A filesystem and a folder in it. Paths given to its methods are relative to that folder.

    Picklable, and small: the filesystem itself is opened once per process.

    Attributes:
        root: The folder, as the filesystem wants it.
        uri: The same, as a user knows it; without keys.
        root_uri: The storage (see `filesystems.split_location`); "" for local disks. May hold keys.
    """

    root: str
    uri: str
    root_uri: str = field(default="", repr=False)

    @property
    def fs(self) -> Any:  # noqa: ANN401 (pyarrow has no types)
        """The pyarrow filesystem."""
        return open_filesystem(self.root_uri)

    @property
    def is_local(self) -> bool:
        """Whether this is a disk of this machine (or one mounted as such)."""
        return not self.root_uri

    def path(self, name: str = "") -> str:
        """Return a name as the filesystem wants it."""
        if not name:
            return self.root
        return f"{self.root.rstrip('/')}/{name}" if self.root else name

    def describe(self, name: str = "") -> str:
        """Return a name as a user knows it."""
        return f"{self.uri.rstrip('/')}/{name}" if name and self.uri else (name or self.uri)
