"""What a row's URI names: a web address, an object in a bucket, or a file; and what a row may not name."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from yarl import URL

from models.errors import SourceError
from pipeline.fetch.faults import RefusedError
from pipeline.fetch.settings import FetchSettings
from pipeline.fetch.web import as_written
from pipeline.storage.odd_keys import unreadable
from pipeline.storage.storage import Storage
from pipeline.storage.stores import SCHEMES, split_location
from pipeline.storage.uris import QUERY, URI

# Only these characters: a name becomes part of a server's address, where `bucket#` or `host:80#` would lead elsewhere.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")
_AZURE = ("az", "abfs", "abfss", "adl", "azure")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, or a file on a disk.

    Attributes:
        storage: Its bucket; or the disk.
        name: Its key; or its path.
    """

    storage: Storage
    name: str


class Places:
    """Resolves URIs.

    Args:
        base: The folder that the manifest's name is relative to.
        manifest: The manifest's name. Paths are relative to its folder.
        settings: The endpoints of object stores.
    """

    def __init__(self, base: Storage, manifest: str, settings: FetchSettings) -> None:
        self._base = base
        self._folder = base.path(manifest).rpartition("/")[0]
        self._options = settings.storage_options

    def find(self, uri: str) -> URL | Stored:
        """Return what a URI names.

        Raises:
            RefusedError: It names nothing that may be fetched.
        """
        match = URI.match(uri)
        if match is None:
            return self._path(uri)
        scheme, authority, rest = match[1].lower(), match[2], match[3]
        if scheme == "file":
            if not self._base.is_local:
                raise RefusedError("unsupported", "a file of a disk, and the manifest is on none")
            return Stored(Storage("/", ""), _local(_split(uri)[1]))
        if scheme in ("http", "https"):
            return _url(uri)
        if scheme not in SCHEMES:
            known = "a path, s3://, gs://, az://, http:// or https://"
            raise RefusedError("unsupported", f"expected {known}, got {scheme[:20]}://")
        return self._object(scheme, authority, rest)

    def _path(self, path: str) -> URL | Stored:
        if path[:5].lower() == "data:":
            raise RefusedError("unsupported", "a data: URI; images within a row are for --image-column")
        if self._base.is_local:
            return Stored(Storage("/", ""), _local(posixpath.join(self._folder, path)))
        if path.startswith("/") or ".." in path.split("/"):
            raise RefusedError("unsupported", "a path that leads out of the manifest's folder, which is on no disk")
        if not self._base.can_list:
            scheme = self._base.root_uri.partition("://")[0]
            return _url(str(URL(f"{scheme}://{self._folder}/") / path))
        bucket, _, folder = self._folder.partition("/")
        return Stored(self._bucket(bucket, self._base.root_uri), posixpath.join(folder, path))

    def _object(self, scheme: str, authority: str, rest: str) -> Stored:
        if not _BUCKET.fullmatch(authority) or ("@" in authority and scheme not in _AZURE):
            raise RefusedError("unsupported", "expected scheme://bucket/key, without keys of an account")
        if QUERY.search(rest):
            raise RefusedError("unsupported", "options behind ? are not taken from a row; the environment has them")
        kind = "az" if scheme in _AZURE else "gs" if scheme == "gcs" else scheme
        options = self._options.get(kind)
        root_uri, path = _split(f"{scheme}://{authority}{rest}" + (f"?{options}" if options else ""))
        bucket, _, key = path.partition("/")
        if not key:
            raise RefusedError("unsupported", "a bucket without a key")
        if why := unreadable(key):
            raise RefusedError("unsupported", why)
        return Stored(self._bucket(bucket, root_uri), key)

    def _bucket(self, bucket: str, root_uri: str) -> Storage:
        """Return a bucket; the manifest's own as the command line has it, with its credentials."""
        own = self._base.root_uri
        is_own = own.partition("://")[0] == root_uri.partition("://")[0] and self._base.root.partition("/")[0] == bucket
        # A container belongs to an account; without one in the URI, to that of the environment.
        if is_own and (not own.startswith("az://") or _account(root_uri) in ("", _account(own))):
            root_uri = own
        return Storage(bucket, bucket, root_uri)


def _account(root_uri: str) -> str:
    named = dict(parse_qsl(root_uri.partition("?")[2])).get("account_name")
    return named or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")


def _split(uri: str) -> tuple[str, str]:
    try:
        return split_location(uri)
    except SourceError as err:
        raise RefusedError("unsupported", str(err)[:300]) from err


def _local(path: str) -> str:
    if "\0" in path:
        raise RefusedError("unsupported", "a path with a zero byte in it")
    return path


def _url(uri: str) -> URL:
    try:
        url = as_written(uri)
        host, user, _ = url.host, url.user, url.port
    except ValueError as err:
        raise RefusedError("unsupported", "not an address that can be asked") from err
    if not host:
        raise RefusedError("unsupported", "an address without a host")
    if user is not None or url.password is not None:
        raise RefusedError("unsupported", "a name and a password are not taken from the address")
    return url.with_fragment(None) if url.raw_fragment else url
