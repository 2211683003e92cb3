"""From a path or URI to a pyarrow filesystem and the place in it. One filesystem per process and storage."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from models.errors import SourceError
from pipeline.storage.retries import Fault, classify, reason, retried
from pipeline.storage.uris import QUERY, URI, display_uri, is_cut_secret

# pyarrow's own 1 s and 3 s cut off servers that are merely slow; a stalled connection is given up after this.
_CONNECT_TIMEOUT_S = 5
_SILENCE_TIMEOUT_S = 15
# Of one request, within 0.8 s. A listing of many pages needs them: `retried` can only begin it anew.
_REQUEST_RETRIES = 5
# Its client would go on for 15 minutes, wrong address or not; `retried` has the patience.
_GCS_RETRY_S = 10
# Shorter values of a URI's options may stand in an error: a region, a scheme.
_SHORTEST_SECRET = 8


def split_location(uri: str) -> tuple[str, str]:
    """Split a path or URI into its storage and the path in it, as written: only file:// URIs are unescaped.

    A `?` begins the query only where a name and `=` follow: `s3://b/0?.tar` is a glob.

    Returns:
        (root_uri, path): root_uri is "" for local disks, else a URI without path, with endpoint and region where the
        environment names them; path is absolute, or begins with the bucket. No `/` at its end.

    Raises:
        SourceError: The URI is malformed.
    """
    match = URI.match(uri)
    if match is None:
        return "", absolute(uri)
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise SourceError(
                f"{display_uri(uri)}: a file URI is file:///folder/file, got a host: {authority.rpartition('@')[2]}"
            )
        return "", absolute(unquote(rest) or "/")
    if is_cut_secret(authority, rest):
        raise SourceError(
            f"{display_uri(uri)}: what stands before the @ is cut at a slash; write a secret's / as %2F, "
            "or better put it into the environment (AWS_SECRET_ACCESS_KEY)"
        )
    if not authority.rpartition("@")[2]:
        raise SourceError(f"{display_uri(uri)} names no bucket")
    path, query = (*QUERY.split(rest, maxsplit=1), "")[:2]
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme == "s3":
        _add_s3_defaults(options)
    elif scheme in ("gs", "gcs"):
        options.setdefault("retry_limit_seconds", str(_GCS_RETRY_S))
    root_uri = f"{scheme}://{authority}" + (f"?{urlencode(options)}" if options else "")
    # Azure's URIs name the container before the host or in the path, as the case may be.
    base = authority.rpartition("@")[2] if scheme in ("s3", "gs", "gcs") else _open(root_uri)[1]
    return root_uri, f"{base}{path if base else path.lstrip('/')}".rstrip("/")


def absolute(path: str) -> str:
    """Return a local path from the root on; `..` goes where the operating system goes, through links too."""
    if path.startswith("/") and "/." not in path and "//" not in path:
        return path.rstrip("/") or "/"  # most paths, and a list may hold millions
    try:
        whole = Path(path).expanduser().absolute()
    except RuntimeError:  # ~nobody: a name that begins so
        whole = Path(path).absolute()
    parts = whole.parts
    if ".." in parts:
        last = len(parts) - parts[::-1].index("..")
        whole = Path(*parts[:last]).resolve().joinpath(*parts[last:])
    return str(whole)


def open_filesystem(root_uri: str) -> Any:  # noqa: ANN401 (pyarrow has no types)
    """Return the filesystem of a storage; the same one at each call.

    Raises:
        SourceError: The scheme or an option is unknown, or the storage refuses.
        StorageError: It does not answer.
    """
    return _open(root_uri)[0]


def open_to_delete(root_uri: str, path: str) -> tuple[Any, str]:
    """Return a filesystem, and a file's path in it, whose `delete_file` deletes the file and does no more.

    On S3 pyarrow then also writes an empty object in the name of the folder, which nobody here needs; rclone's server
    takes it for a file in the folder's place, and shows nothing of what is in it for minutes. A file that is in no
    folder is spared that. So, behind an endpoint of one's own, the folders above become part of the endpoint, and the
    last of them the bucket: the same address, http://host/bucket/above/folder/name, taken apart in another place.
    """
    above, _, name = path.rpartition("/")
    above, _, folder = above.rpartition("/")
    if root_uri.startswith("s3://") and "endpoint_override" in root_uri and above:
        return _open(root_uri, above)[0], f"{folder}/{name}"
    return open_filesystem(root_uri), path


@lru_cache(maxsize=64)
def _open(root_uri: str, above: str = "") -> tuple[Any, str]:
    if not root_uri:
        return pafs.LocalFileSystem(), ""
    shown = display_uri(root_uri)

    def build() -> tuple[Any, str]:
        try:
            fs, base = _build(root_uri, above)
        except (ValueError, NotImplementedError, OSError, pa.ArrowException) as err:
            if classify(err) is Fault.PERMANENT:
                # Not `from err`: pyarrow's text may hold the whole URI, and a log of the cause would show it.
                raise SourceError(f"cannot open {shown}: {_without(root_uri, reason(err))}") from None
            raise
        return fs, base

    return retried(f"open {shown}", build)


def _without(root_uri: str, text: str) -> str:
    """Return a text without what a URI has in it beside its place, in whatever pieces the text repeats it."""
    uri = URI.match(root_uri)
    user = uri[2].rpartition("@")[0] if uri else ""
    options = [value for _, value in parse_qsl(uri[3].lstrip("?"))] if uri else []
    secrets = [root_uri, user, *user.split(":"), *(value for value in options if len(value) >= _SHORTEST_SECRET)]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def _build(root_uri: str, above: str) -> tuple[Any, str]:
    if not root_uri.startswith("s3://"):
        fs, base = pafs.FileSystem.from_uri(root_uri)
        return fs, base.rstrip("/")
    parts = urlsplit(root_uri)
    options = dict(parse_qsl(parts.query))
    anonymous = options.pop("anonymous", "false").lower() == "true"
    if "endpoint_override" in options:
        # Checksums in the form that AWS has introduced of late are refused by most other servers (MinIO before 2024,
        # Ceph, rclone: 411 MissingContentLength). Read by the SDK when the first client is built.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    fs, bucket = pafs.FileSystem.from_uri(parts._replace(query=urlencode(options)).geturl())
    # The URI form has no word for what follows, and a pickled filesystem forgets its retries.
    settings = fs.__reduce__()[1][0]
    settings |= {
        "anonymous": anonymous,
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "request_timeout": _SILENCE_TIMEOUT_S,
        "retry_strategy": pafs.AwsDefaultS3RetryStrategy(max_attempts=_REQUEST_RETRIES),
        # A small object is one PUT when its stream closes, not a multipart upload of three requests.
        "allow_delayed_open": True,
    }
    if above:
        settings["endpoint_override"] += "/" + quote(above)
    return pafs.S3FileSystem(**settings), bucket


def _add_s3_defaults(options: dict[str, str]) -> None:
    """Name endpoint and region where the environment has them; without, pyarrow asks AWS where the bucket lies."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options.setdefault("endpoint_override", endpoint)
    scheme, separator, host = options.get("endpoint_override", "").partition("://")
    if separator:
        options["endpoint_override"] = host.rstrip("/")
        options.setdefault("scheme", scheme)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or "endpoint_override" in options:
        options.setdefault("region", region or "us-east-1")
