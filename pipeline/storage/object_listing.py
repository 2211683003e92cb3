"""List the objects of a store page by page, in the store's order, resuming after errors, whatever their names are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from obstore.exceptions import BaseError, InvalidPathError

from models.errors import StorageError
from pipeline.storage.location import Location
from pipeline.storage.odd_keys import is_path, original
from pipeline.storage.relay import relayed_store

Meta = Mapping[str, Any]


def list_one_folder(place: Location, folder: str) -> tuple[list[Meta], list[str]]:
    """Return the objects of a folder, and the keys of the folders in it.

    Raises:
        BaseError: obstore's own.
    """
    try:
        found = place.store.list_with_delimiter(folder or None)
    except BaseError as err:
        if not _is_of_a_name(err):
            raise
        found = relayed_store(place.root_uri).list_with_delimiter(folder or None)
        return _with_original_names(found["objects"]), [original(path) for path in found["common_prefixes"]]
    return found["objects"], found["common_prefixes"]


def _is_of_a_name(err: BaseError) -> bool:
    """Tell whether a page failed because of a name in it: one that is not a path, or that XML cannot hold."""
    return isinstance(err, InvalidPathError) or "character is not permitted in XML" in str(err)


def _with_original_names(page: Sequence[Meta]) -> list[Meta]:
    return [{**meta, "path": original(meta["path"])} for meta in page]


class ObjectListing:
    """All objects below a folder, in pieces.

    Args:
        place: The bucket.
        folder: The folder's key; "" for all of the bucket.
        most: Maximum objects of a piece.
    """

    def __init__(self, place: Location, folder: str, most: int) -> None:
        self._place = place
        self._folder = folder
        self._most = most
        self._is_relayed = False
        # Azure cannot begin after a name.
        self._has_offsets = not place.root_uri.startswith("az")
        self._offset: str | None = None  # the last name after which a listing can begin
        self._last: str | None = None
        self._stream: Iterator[Sequence[Meta]] | None = None

    def page(self) -> Sequence[Meta]:
        """Return the next objects, () at the end. After an error the next call continues after the last object.

        Raises:
            BaseError: obstore's own.
            StorageError: The last object is gone, so the listing cannot continue.
        """
        try:
            page = self._next()
        except BaseError as err:
            if self._is_relayed or not _is_of_a_name(err):
                raise
            self._is_relayed = True
            page = self._next()
        if page:
            self._last = page[-1]["path"]
        if self._has_offsets:
            self._offset = next((meta["path"] for meta in reversed(page) if is_path(meta["path"])), self._offset)
        return page

    def _next(self) -> Sequence[Meta]:
        try:
            self._stream = self._stream or self._begin()
            return next(self._stream, ())
        except BaseException:
            self._stream = None
            raise

    def _begin(self) -> Iterator[Sequence[Meta]]:
        store = relayed_store(self._place.root_uri) if self._is_relayed else self._place.store
        stream = store.list(self._folder or None, offset=self._offset, chunk_size=self._most)
        pages = map(_with_original_names, stream) if self._is_relayed else iter(stream)
        return pages if self._last in (None, self._offset) else self._behind(self._last, pages)

    def _behind(self, last: str | None, pages: Iterator[Sequence[Meta]]) -> Iterator[Sequence[Meta]]:
        for page in pages:
            names = [meta["path"] for meta in page]
            if last in names:
                yield from chain(filter(None, [page[names.index(last) + 1 :]]), pages)
                return
        shown = self._place.describe(self._folder)
        raise StorageError(f"cannot list {shown}: {last} was deleted during the listing; run the command again")
