"""Request a file from one source, whole or from an offset: HTTP(S), a `file:` URL or a local path."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

import requests
import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, NameResolutionError, ReadTimeoutError

# For each address of a host. Short, since a firewall that drops packets would otherwise delay a start by minutes.
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class SourceError(Exception):
    """One source did not deliver the file.

    Args:
        reason: Short, for the list of sources tried.
        again: Whether a retry may succeed.
        wait_s: Seconds that the source asked to wait before a retry.
        unreachable: Whether the host was not reached at all, so that its other URLs need not be tried.
    """

    def __init__(
        self, reason: str, *, again: bool = False, wait_s: float | None = None, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.again = again
        self.wait_s = wait_s
        self.unreachable = unreachable


class RangeError(SourceError):
    """The source cannot resume at the requested offset: request the whole file."""


class _Stream(Protocol):
    def read1(self, n: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A source's open response: bytes of the file from `start` on.

    `whole_bytes` is the size of the whole file according to the source, if it gives one.
    """

    stream: _Stream
    start: int
    whole_bytes: int | None
    etag: str | None = None
    media_type: str = ""

    def read(self) -> bytes:
        """Return the bytes that have arrived, at most CHUNK_BYTES; waits for at least one; b"" at the end.

        Raises:
            SourceError: The connection was lost or timed out; a retry may succeed.
        """
        try:
            return self.stream.read1(CHUNK_BYTES)
        except (OSError, HTTPError) as err:
            raise _explain(err) from err


@contextlib.contextmanager
def open_source(url: str, *, offset: int = 0, etag: str | None = None) -> Iterator[Answer]:
    """Request a file from a source.

    Args:
        url: http, https or file URL, or a local path. `user:password@` becomes basic authentication.
        offset: Where to resume. The source may still start at 0: see `Answer.start`.
        etag: Resume only if the file still has this ETag.

    Raises:
        SourceError: The source has no such file, or cannot be reached.
        RangeError: The file is shorter than the offset, or the source sent another range.
    """
    path = local_path(url)
    if path is None:
        with _request(url, offset, etag) as response:
            yield _http_answer(response, offset)
        return
    try:
        file = path.open("rb")
    except OSError as err:
        raise SourceError(f"cannot be read: {err.strerror or err}") from err
    with file:
        yield Answer(file, start=0, whole_bytes=path.stat().st_size)


def local_path(url: str) -> Path | None:
    """Return the local path of a `file:` URL or a plain path; None for any other URL."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(url2pathname(parts.path))
    is_drive = len(parts.scheme) == 1
    return Path(url).expanduser() if is_drive or not parts.scheme else None


def public_url(url: str) -> str:
    """Return a URL that is safe to show: without password and query, which may be a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    if not parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _request(url: str, offset: int, etag: str | None) -> requests.Response:
    scheme = urlsplit(url).scheme
    if scheme not in {"http", "https"}:
        raise SourceError(f"must be an http, https or file URL or a folder, got {scheme}://")
    headers = {"User-Agent": "shardlabel", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        # A weak ETag promises equal meaning, not equal bytes. Then only the SHA-256 decides.
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    # The system's certificates, which include an organisation's own; without them, those of requests.
    system = ssl.get_default_verify_paths()
    try:
        return requests.get(
            url,
            headers=headers,
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            verify=system.cafile or system.capath or True,
        )
    except (OSError, ValueError, HTTPError) as err:
        raise _explain(err) from err


def _http_answer(response: requests.Response, offset: int) -> Answer:
    start, whole = 0, response.headers.get("Content-Length", "")
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
        if not match or int(match[1]) != offset:
            raise RangeError(f"sent the range {given!r}, expected bytes from {offset}", again=True)
        start, whole = offset, match[2]
    elif response.status_code != HTTPStatus.OK:
        raise _explain_status(response)
    response.raw.enforce_content_length = False  # the reader checks the size itself
    return Answer(
        response.raw,
        start=start,
        whole_bytes=int(whole) if whole.isdecimal() else None,
        etag=response.headers.get("ETag"),
        media_type=response.headers.get("Content-Type", "").partition(";")[0].strip().lower(),
    )


def _explain_status(response: requests.Response) -> SourceError:
    reason = f"HTTP {response.status_code} {response.reason}"
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return RangeError(reason, again=True)
    wait_s = None
    with contextlib.suppress(InvalidHeader):
        wait_s = urllib3.Retry().get_retry_after(response.raw)
    return SourceError(reason, again=response.status_code in _TRANSIENT_STATUS, wait_s=wait_s)


def _explain(err: Exception) -> SourceError:
    """Say in a few words why there was no response, or only a part of it."""
    if isinstance(err, requests.ConnectTimeout):
        return SourceError(f"no connection within {CONNECT_TIMEOUT_S:g} s", unreachable=True)
    if isinstance(err, (requests.ReadTimeout, ReadTimeoutError)):
        return SourceError(f"no data for {READ_TIMEOUT_S:g} s", again=True)
    if isinstance(err, ValueError):
        return SourceError("not a valid URL")  # the error itself repeats the URL with its password
    if isinstance(err, requests.TooManyRedirects):
        return SourceError("too many redirects")
    # Errors before the request is sent are wrapped in urllib3's MaxRetryError.
    reason: Any = getattr(err.args[0] if err.args else None, "reason", None)
    if isinstance(reason, NameResolutionError):
        return SourceError("cannot resolve the host name", unreachable=True)
    if reason is not None:
        return SourceError(f"cannot connect: {reason.__cause__ or reason}", unreachable=True)
    cause: Any = err
    while cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    return SourceError(f"connection lost: {cause}", again=True)
