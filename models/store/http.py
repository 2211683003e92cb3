"""Ask one source for a file, whole or from an offset: HTTP(S), a `file:` URL or a local path."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

# For each address of a host; short, or a firewall that drops packets would hold a start for minutes.
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_RESET = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class SourceError(Exception):
    """One source did not give the file.

    Args:
        reason: Short, for the list of sources tried.
        again: Whether the same request may work in a moment.
        wait_s: How long the source asked to wait first.
        unreachable: Whether the host was not reached at all: no use to ask it for another URL.
    """

    def __init__(
        self, reason: str, *, again: bool = False, wait_s: float | None = None, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.again = again
        self.wait_s = wait_s
        self.unreachable = unreachable


class RangeError(SourceError):
    """The source cannot go on from the offset asked for: ask for the whole file."""


class _Stream(Protocol):
    def read1(self, n: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A source's answer, opened: bytes of the file from `start` on.

    `whole_bytes` is the size that the source gives the whole file, where it gives one.
    """

    stream: _Stream
    start: int
    whole_bytes: int | None
    etag: str | None = None
    media_type: str = ""

    def read(self) -> bytes:
        """Return what has arrived, at most CHUNK_BYTES, waiting for at least a byte; b"" at the end.

        Raises:
            SourceError: The connection was lost or went silent; always worth another try.
        """
        try:
            return self.stream.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as err:
            raise _explain(err) from err


@contextlib.contextmanager
def open_source(url: str, *, offset: int = 0, etag: str | None = None) -> Iterator[Answer]:
    """Ask a source for a file.

    Args:
        url: http, https or file URL, or a local path. `user:password@` becomes basic authentication.
        offset: Go on from here. The source may answer from 0 all the same: see `Answer.start`.
        etag: Go on only if the file still has this one.

    Raises:
        SourceError: It has no such file, or cannot be asked.
        RangeError: It has fewer bytes than the offset, or answered with others.
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
    """Return the path that a `file:` URL or a plain path stands for; None for any other URL."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(urllib.request.url2pathname(parts.path))
    is_drive = len(parts.scheme) == 1
    return Path(url).expanduser() if is_drive or not parts.scheme else None


def public_url(url: str) -> str:
    """Return a URL as it may be shown: without password and query, which may be a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    if not parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _request(url: str, offset: int, etag: str | None) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise SourceError(f"must be an http, https or file URL or a folder, got {parts.scheme}://")
    credentials, _, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "shardlabel", "Accept": "*/*"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        # A weak ETag promises equal meaning, not equal bytes: the SHA-256 has the last word then.
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    try:
        request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers=headers)
        if credentials:
            user, _, password = credentials.partition(":")
            token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        opener = urllib.request.build_opener(_HTTPHandler, _HTTPSHandler)
        response: http.client.HTTPResponse = opener.open(request, timeout=CONNECT_TIMEOUT_S)
    except HTTPError as err:
        err.close()
        raise _explain_status(err) from err
    except (OSError, ValueError, http.client.HTTPException) as err:
        raise _explain(err) from err
    return response


def _http_answer(response: http.client.HTTPResponse, offset: int) -> Answer:
    start, whole = 0, response.headers.get("Content-Length", "")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
        if not match or int(match[1]) != offset:
            raise RangeError(f"answered with the range {given!r}, asked for bytes from {offset}", again=True)
        start, whole = offset, match[2]
    elif response.status != http.HTTPStatus.OK:
        raise SourceError(f"HTTP {response.status} {response.reason}")
    return Answer(
        response,
        start=start,
        whole_bytes=int(whole) if whole.isdecimal() else None,
        etag=response.headers.get("ETag"),
        media_type=response.headers.get_content_type(),
    )


def _explain_status(err: HTTPError) -> SourceError:
    reason = f"HTTP {err.code} {err.reason}"
    if err.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return RangeError(reason, again=True)
    return SourceError(reason, again=err.code in _TRANSIENT_STATUS, wait_s=_seconds(err.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if retry_after is None or retry_after.isdecimal():
        return float(retry_after) if retry_after else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _explain(err: Exception) -> SourceError:
    """Say in a few words why there was no answer, or no more of it."""
    cause = err.reason if isinstance(err, URLError) else err
    if isinstance(cause, socket.gaierror):
        return SourceError("cannot resolve the host's name", unreachable=True)
    if isinstance(err, URLError):
        # urllib wraps what happens before the request is sent: connecting, and TLS.
        if isinstance(cause, TimeoutError):
            return SourceError(f"no connection within {CONNECT_TIMEOUT_S:g} s", unreachable=True)
        is_reset = isinstance(cause, _RESET)
        is_os = isinstance(cause, OSError) and not is_reset
        return SourceError(f"cannot connect: {cause}", again=is_reset, unreachable=is_os)
    if isinstance(cause, TimeoutError):
        return SourceError(f"no data for {READ_TIMEOUT_S:g} s", again=True)
    if isinstance(cause, ValueError):
        return SourceError(f"not a usable URL: {cause}")
    return SourceError(f"connection lost: {cause}", again=True)


class _HTTPConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HTTPSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req)
