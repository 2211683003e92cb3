"""One request to a web server: the bytes or a redirect, with a limit of size, and only to allowed addresses."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial

import aiohttp
import requests.utils
from yarl import URL

from pipeline.fetch.addresses import PrivateAddressError, public_socket, refuse_private_name
from pipeline.fetch.faults import FetchError, RefusedError, too_large
from pipeline.fetch.hosts import Host
from pipeline.fetch.job import Job

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 20.0
# How long an idle connection is kept.
KEPT_S = 2.0
# A URI of these characters alone is sent as it is written; in any other, characters are escaped.
_ESCAPED = re.compile(r"[!-~]+")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": "shardlabel", "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
# Text and whether to retry, by aiohttp's classes. The first match counts: some of the classes derive from others.
_REASONS: tuple[tuple[tuple[type[Exception], ...], str, bool], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError),
        "the host's certificate is not valid, or it does not speak TLS",
        False,
    ),
    ((aiohttp.ConnectionTimeoutError,), f"no connection within {CONNECT_TIMEOUT_S:g} s", True),
    ((aiohttp.ServerTimeoutError,), f"silent for {SILENCE_S:g} s", True),
    ((aiohttp.ClientPayloadError,), "the answer was cut off", True),
    ((aiohttp.ServerDisconnectedError,), "the connection was lost", True),
)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a redirect leads."""

    url: URL


class WebClient:
    """Sends requests to web servers. Create and use it within one event loop, and close it.

    The proxies of the environment (`HTTP_PROXY`, `NO_PROXY`, ...) are used: the user who runs the command has chosen
    them, and they then resolve names.

    Args:
        allow_private: Whether any address is allowed.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()

    async def get(self, url: URL, job: Job, host: Host) -> bytes | Redirect:
        """Send one request.

        Args:
            url: http or https.
            job: Counts the bytes as they arrive.
            host: Its host; if no request waits for it, the connection is not kept.

        Raises:
            FetchError: There was no answer, or not a successful one.
            RefusedError: The answer is too large, or compressed.
            NoRoomError: There is no memory for it now.
        """
        proxy, auth = self._proxy(url)
        session = self._session(is_checked=not (proxy or self._allow_private), is_kept=host.is_wanted)
        try:
            if proxy and not self._allow_private:
                refuse_private_name(url.host or "")
            async with session.get(url, allow_redirects=False, proxy=proxy, proxy_auth=auth) as answer:
                return await _read(answer, url, job)
        except PrivateAddressError as err:
            raise _private(err) from err
        except (aiohttp.ClientError, OSError, ValueError) as err:
            raise _explain(err) from err

    def _session(self, *, is_checked: bool, is_kept: bool) -> aiohttp.ClientSession:
        """Return a session with or without checks of addresses and kept connections: of ten thousand hosts none is kept."""
        if (is_checked, is_kept) not in self._sessions:
            # `hosts` limits the number of connections.
            connect = partial(
                aiohttp.TCPConnector, limit=0, ssl=_trusted(), socket_factory=public_socket if is_checked else None
            )
            connector = connect(keepalive_timeout=KEPT_S) if is_kept else connect(force_close=True)
            self._sessions[is_checked, is_kept] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S),
                headers=_HEADERS,
                auto_decompress=False,  # a small answer must not become a large one
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # it would send passwords of ~/.netrc
            )
        return self._sessions[is_checked, is_kept]

    @staticmethod
    def _proxy(url: URL) -> tuple[URL | None, aiohttp.BasicAuth | None]:
        """Return the environment's proxy for a URL, if any, and its credentials."""
        text = str(url)
        proxy = requests.utils.select_proxy(text, requests.utils.get_environ_proxies(text, no_proxy=None))
        if not proxy:
            return None, None
        try:
            place = URL(proxy if "://" in proxy else f"http://{proxy}")
        except ValueError:  # the error's text holds the password
            raise FetchError(
                "the proxy of the environment is no address; its password may have to be escaped"
            ) from None
        if place.scheme not in ("http", "https"):
            raise FetchError(
                f"proxies of {place.scheme[:10]}:// are not spoken to; give an http:// one in HTTP(S)_PROXY"
            )
        auth = aiohttp.BasicAuth(place.user, place.password or "") if place.user else None
        return place.with_user(None), auth


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Return the system's certificates, with an organisation's own; those of requests if there are none."""
    paths = ssl.get_default_verify_paths()
    bundle = None if paths.cafile or paths.capath else requests.utils.DEFAULT_CA_BUNDLE_PATH
    return ssl.create_default_context(cafile=bundle)


async def _read(answer: aiohttp.ClientResponse, url: URL, job: Job) -> bytes | Redirect:
    if answer.status in _REDIRECTS and (location := answer.headers.get("Location")):
        return Redirect(_joined(url, location))
    if answer.status != 200:
        raise FetchError(f"HTTP {answer.status}", again=answer.status in _TRANSIENT, wait_s=_wait(answer))
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise RefusedError("unsupported", f"the answer is packed ({coding[:20]}), which was not asked for")
    size = answer.content_length
    if size is not None and size > job.most:
        raise too_large(size, job.most)
    content = bytearray()
    async for piece in answer.content.iter_any():
        if len(content) + len(piece) > job.most:
            raise RefusedError("too_large", f"more bytes than the {job.most} allowed")
        job.hold(len(piece), size)
        content += piece
    return bytes(content)


def as_written(uri: str) -> URL:
    """Return an address as it is written, if it can be sent so: a signed URL must not be changed.

    Raises:
        ValueError: It is not a URL.
    """
    return URL(uri, encoded=_ESCAPED.fullmatch(uri) is not None)


def _joined(url: URL, location: str) -> URL:
    try:
        target = url.join(as_written(location))
    except ValueError as err:
        raise FetchError("a redirect to what is no address") from err
    if target.scheme not in ("http", "https") or not target.host:
        raise FetchError(f"a redirect to {target.scheme[:20] or 'nowhere'}:, which is not followed")
    return target.with_user(None).with_fragment(None)


def _wait(answer: aiohttp.ClientResponse) -> float | None:
    """Return the seconds that a host asked to wait; None if it did not."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def _private(err: PrivateAddressError) -> FetchError:
    return FetchError(f"private address {err.address} (--allow-private-hosts fetches from there)")


def _explain(err: Exception) -> FetchError | RefusedError:
    """Say in a few words why there was no answer, or no complete one. aiohttp's own texts repeat the URL."""
    if isinstance(err, aiohttp.ClientConnectorDNSError):
        number = getattr(err.os_error, "errno", None)
        return FetchError("the host's name cannot be resolved", again=number == socket.EAI_AGAIN)
    if isinstance(err, aiohttp.ClientHttpProxyError):
        return FetchError(f"the proxy answered HTTP {err.status}", again=err.status in _TRANSIENT)
    for kinds, text, again in _REASONS:
        if isinstance(err, kinds):
            return FetchError(text, again=again)
    if isinstance(err, aiohttp.ClientConnectorError):
        if isinstance(err.os_error, PrivateAddressError):
            return _private(err.os_error)
        return FetchError(f"cannot connect: {_system_text(err.os_error)}", again=True)
    if isinstance(err, OSError):
        return FetchError("the connection was lost", again=True)
    if isinstance(err, ValueError):
        return RefusedError("unsupported", "not an address that can be asked")
    return FetchError("the answer is no HTTP")


def _system_text(err: OSError) -> str:
    known = {errno.ECONNREFUSED: "connection refused", errno.EHOSTUNREACH: "no route to host"}
    return known.get(err.errno or 0, (err.strerror or type(err).__name__).lower()[:80])
