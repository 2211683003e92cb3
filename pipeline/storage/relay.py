"""A relay between obstore and an object store, for listings with names that obstore does not accept.

It listens on this machine alone, for as long as the process lives, and forwards obstore's requests: with their
signature (GCS, Azure), or signed by obstore again for the real address (S3, which signs the address too). In the
responses it encodes keys so that obstore accepts them (`odd_keys.py`).
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit
from xml.sax.saxutils import escape, unescape

import obstore
from obstore.exceptions import BaseError

from models.errors import SourceError
from pipeline.storage.odd_keys import bucket_address, passable
from pipeline.storage.retries import reason
from pipeline.storage.stores import CONNECT_TIMEOUT_S, SILENCE_S, build_store, is_true
from pipeline.storage.uris import URI

# From path with query and headers of obstore's request to the URL and headers of the real one; None to refuse.
Forward = Callable[[str, Mapping[str, str]], tuple[str, dict[str, str]] | None]

_SIGNED_FOR = timedelta(minutes=5)
# Headers of a connection, not of the request.
_OF_A_CONNECTION = frozenset({"host", "connection", "accept-encoding", "transfer-encoding", "proxy-connection"})
_NAME = re.compile(rb"<(Key|Name|Prefix)( [^>]*)?>([^<]*)</\1>")
_REFERENCE = re.compile(r"&#(?:x([0-9a-fA-F]+)|([0-9]+));")


@lru_cache(maxsize=8)
def relayed_store(root_uri: str) -> Any:  # noqa: ANN401 (obstore's stores have no common class)
    """Return an obstore store whose listings come through a relay; the same one at each call."""
    address = bucket_address(root_uri)
    match = URI.match(root_uri)
    assert match is not None
    options = dict(parse_qsl(match[3].lstrip("?"), keep_blank_values=True))
    is_s3 = match[1] == "s3"
    # Only requests with this name are signed.
    secret = f"/{secrets.token_hex(16)}"
    forward = _signed_anew(root_uri, address, secret, options) if is_s3 else _as_it_came(address)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.forward, server.certificates = forward, options.get("tls_ca_file_path") or True  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, name="listing-relay", daemon=True).start()
    relay = f"http://127.0.0.1:{server.server_port}{secret if is_s3 else urlsplit(address).path}"
    asked_by = f"s3://{match[2].rpartition('@')[2]}?region=none&anonymous=true" if is_s3 else root_uri
    return build_store(asked_by, address=relay, past_proxies=True)


def _as_it_came(address: str) -> Forward:
    place = urlsplit(address)

    def forward(path: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
        # This bucket alone: `@host/` after the host would lead to another one.
        if unquote(path.partition("?")[0]).rstrip("/") != unquote(place.path).rstrip("/"):
            return None
        kept = {name: value for name, value in headers.items() if name.lower() not in _OF_A_CONNECTION}
        return f"{place.scheme}://{place.netloc}{path}", kept

    return forward


def _signed_anew(root_uri: str, address: str, secret: str, options: Mapping[str, str]) -> Forward:
    def forward(path: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
        place, _, query = path.partition("?")
        if not secrets.compare_digest(place.encode("latin-1", "replace"), secret.encode()):
            return None
        url = f"{address}?{query}&encoding-type=url"
        if is_true(options.get("anonymous") or os.environ.get("AWS_SKIP_SIGNATURE", "")):
            return url, {}
        # obstore signs only addresses of objects. S3 ignores parameters that begin with x-, so this names no object.
        store = build_store(root_uri, address=f"{url}&x-id=")
        return obstore.sign(store, "GET", "ListObjectsV2", _SIGNED_FOR), {}

    return forward


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        import requests

        server: Any = self.server
        try:
            forwarded = server.forward(self.path, self.headers)
            if forwarded is None:
                self._answer(403, b"")
                return
            url, headers = forwarded
            timeout = (CONNECT_TIMEOUT_S, SILENCE_S)
            answer = requests.get(url, headers=headers, timeout=timeout, verify=server.certificates)
        except (BaseError, SourceError, requests.RequestException) as err:  # obstore retries
            # The text of the latter holds the signed address.
            said = type(err).__name__ if isinstance(err, requests.RequestException) else reason(err)
            text = f"<Error><Code>Relay</Code><Message>{escape(said)}</Message></Error>"
            self._answer(502, text.encode())
            return
        self._answer(answer.status_code, with_passable_names(answer.content) if answer.ok else answer.content)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def with_passable_names(listing: bytes) -> bytes:
    """Encode the names in a page of a listing (XML of S3, GCS or Azure) so that obstore accepts them as paths."""
    is_quoted = b"<EncodingType>url</EncodingType>" in listing

    def rewrite(found: re.Match[bytes]) -> bytes:
        text = _REFERENCE.sub(_character, found[3].decode())
        text = unescape(text, {"&quot;": '"', "&apos;": "'"})
        if is_quoted:
            text = unquote_plus(text)
        elif b"Encoded" in (found[2] or b""):  # Azure encodes a name that XML cannot hold
            text = unquote(text)
        return b"<%b>%b</%b>" % (found[1], escape(passable(text)).encode(), found[1])

    return _NAME.sub(rewrite, listing)


def _character(found: re.Match[str]) -> str:
    return chr(int(found[1], 16) if found[1] else int(found[2]))
