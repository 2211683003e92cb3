"""A place in a storage, and a file there: the types that all of `pipeline.storage` uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.errors import SourceError
from pipeline.storage.odd_keys import store_behind_empty_segment, unreadable, visible
from pipeline.storage.stores import open_store


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file as its storage lists it.

    Attributes:
        path: Relative to the storage's folder.
        size: In bytes; -1 for a broken link.
        etag: Changes when the content does: an object's ETag, or the time of the last write in ns on a disk.
        modified_s: Time of the last write, in s since 1970.
    """

    path: str
    size: int
    etag: str
    modified_s: float = field(default=0.0, compare=False)


def etag_of(meta: Mapping[str, Any]) -> str:
    """Return an object's ETag, or what else changes with it, without the quotes that only some responses have."""
    tag = meta.get("e_tag") or meta.get("version")
    return str(tag).removeprefix("W/").strip('"') if tag else f"{int(meta['last_modified'].timestamp()):x}"


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an object in an object store, for a write on condition that it is still the same.

    Attributes:
        e_tag: The ETag as the store writes it.
        version: The version number, from stores that have one (GCS).
    """

    e_tag: str | None
    version: str | None

    @classmethod
    def of(cls, found: Any) -> Version:  # noqa: ANN401 (obstore's metadata, or the result of a PUT)
        """Return the version in a response."""
        return cls(found["e_tag"], found["version"])


@dataclass(frozen=True)
class Location:
    """A storage and a folder in it. Paths given to its methods are relative to that folder.

    Picklable, and small: the store itself is opened once per process.

    Attributes:
        root: The folder: absolute, or beginning with the bucket.
        uri: The same, as a user knows it; without credentials.
        root_uri: The storage (see `stores.split_location`); "" for local disks. May hold credentials.
    """

    root: str
    uri: str
    root_uri: str = field(default="", repr=False)

    @property
    def store(self) -> Any:  # noqa: ANN401 (obstore's stores have no common class)
        """The obstore store."""
        return open_store(self.root_uri)

    @property
    def is_local(self) -> bool:
        """Whether this is a disk of this machine (or one mounted as such)."""
        return not self.root_uri

    @property
    def can_list(self) -> bool:
        """Whether it can list a folder: a web server cannot."""
        return not self.root_uri.startswith("http")

    def path(self, name: str = "") -> str:
        """Return a name as an absolute path, or one that begins with the bucket."""
        if not name:
            return self.root
        return f"{self.root.rstrip('/')}/{name}" if self.root else name

    def key(self, name: str = "") -> str:
        """Return a name as a key of the bucket."""
        return self.path(name).partition("/")[2]

    def object(self, name: str) -> tuple[Any, str]:
        """Return the obstore store that has an object, and the object's key there.

        Raises:
            SourceError: The key cannot be requested.
        """
        if why := self.unreadable(name):
            raise SourceError(f"{self.describe(name)} cannot be used: {why}")
        key = self.key(name)
        is_odd = "//" in key and self.can_list
        return store_behind_empty_segment(self.root_uri, key) if is_odd else (self.store, key)

    def unreadable(self, name: str) -> str | None:
        """Say why a file cannot be fetched, whatever the storage answers; None if it can."""
        return None if self.is_local else unreadable(self.key(name))

    def describe(self, name: str = "") -> str:
        """Return a name as a user knows it."""
        return visible(f"{self.uri.rstrip('/')}/{name}" if name and self.uri else (name or self.uri))
