"""Keys that are no paths: written so that obstore takes them, and back; and where their objects are asked for."""

from __future__ import annotations

import hmac
import socket
import threading
from datetime import timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlsplit

import obstore
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline.storage.location import Location
from pipeline.storage.odd_keys import bucket_address, is_path, original, passable, unreadable, visible
from pipeline.storage.relay import _as_it_came, _signed_anew, relayed_store, with_passable_names
from pipeline.storage.stores import build_store, open_store

SEGMENT = st.one_of(st.sampled_from(["", ".", "..", "a", "\x00", "\x1b[2J", "\uf6d1", "%2e"]), st.text(max_size=4))


@given(st.lists(SEGMENT, min_size=1, max_size=5).map("/".join))
def test_every_key_can_be_written_as_a_path_and_is_read_back(key: str) -> None:
    store = MemoryStore()
    obstore.put(store, passable(key), b"")

    # obstore drops a slash at either end, of all keys alike.
    expected = [key.removeprefix("/").removesuffix("/")] if key not in ("", "/") else []
    assert [original(found["path"]) for page in obstore.list(store) for found in page] == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b.jpg", True), ("a/b c%.jpg", True), ("a/.b/..c", True), ("", True),
        ("a//b", False), ("a/./b", False), ("../b", False), ("a\x7f", False), ("a/", False),
    ],
)  # fmt: skip
def test_a_path_is_a_key_that_obstore_takes_as_it_is(key: str, expected: bool) -> None:
    assert is_path(key) is expected


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("a//b.jpg", None), ("a/.b/é.jpg", None), ("a\u00a0/b..jpg", None), (".a", None),
        ("a/../b", "'..'"), ("./b", "'.'"), ("a//..", "'..'"), ("a\x1bb", r"(\x1b)"), ("a\n/.", r"(\x0a)"),
    ],
)  # fmt: skip
def test_why_an_object_cannot_be_fetched(key: str, why: str | None) -> None:
    said = unreadable(key)

    assert (said is None) == (why is None)
    assert said is None or (why in said and said.isprintable())  # type: ignore[operator]


def test_control_characters_of_a_name_do_not_reach_a_terminal() -> None:
    assert Location("b/x", "s3://b/x", "s3://b").describe("a\x1b[2J\n.tar") == r"s3://b/x/a\x1b[2J\x0a.tar"
    assert visible("é漢\u2028") == "é漢\u2028"


@pytest.mark.parametrize(
    ("root_uri", "expected"),
    [
        ("s3://b?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com/b"),
        ("s3://b?region=eu-west-1&force_virtual_addressing=true", "https://b.s3.eu-west-1.amazonaws.com"),
        ("s3://ID:SECRET@b?region=x&endpoint_override=host:9000&scheme=http", "http://host:9000/b"),
        ("s3://b?region=x&endpoint_override=b.host&force_virtual_addressing=true", "https://b.host"),
        ("gs://b", "https://storage.googleapis.com/b"),
        ("gs://anonymous@b?endpoint_override=host:1&scheme=http", "http://host:1/b"),
        ("az://c?account_name=acc", "https://acc.blob.core.windows.net/c"),
        ("az://c?account_name=acc&blob_storage_authority=host", "https://host/acc/c"),
        ("az://c?blob_storage_authority=host:1/acc&blob_storage_scheme=http", "http://host:1/acc/c"),
    ],
)
def test_the_address_of_a_bucket(root_uri: str, expected: str) -> None:
    assert bucket_address(root_uri) == expected


@pytest.mark.parametrize("key", ["a//b.jpg", "a///b c.jpg", "x//y//z/w.jpg"])
@pytest.mark.parametrize(
    "root_uri", ["s3://AKID:secret@b?region=x&endpoint_override=host", "az://c?account_name=acc&account_key=a2V5"]
)
def test_an_object_behind_an_empty_segment_is_asked_for_by_its_whole_key(root_uri: str, key: str) -> None:
    store, name = Location("b", "", root_uri).object(key)

    url = obstore.sign(store, "GET", name, timedelta(minutes=1)).partition("?")[0]
    assert url == f"{bucket_address(root_uri)}/{quote(key)}"


def test_names_in_listings_of_s3_come_as_they_are_quoted() -> None:
    page = (
        b"<R><EncodingType>url</EncodingType><Contents><Key>in/a%2Bb+c%2F%2Fd%01.jpg</Key></Contents>"
        b"<CommonPrefixes><Prefix>in//</Prefix></CommonPrefixes><NextContinuationToken>a+b</NextContinuationToken></R>"
    )

    written = with_passable_names(page).decode()

    assert f"<Key>{passable('in/a+b c//d' + chr(1) + '.jpg')}</Key>" in written
    assert "<Prefix>in/\uf6d1/</Prefix>" in written
    assert "<NextContinuationToken>a+b<" in written


def test_names_in_listings_of_gcs_and_azure_come_as_xml_has_them() -> None:
    written = with_passable_names(
        b'<R><Key>a+b%20&amp;&lt;&#x0;&#10;</Key><Blob><Name Encoded="true">x%01//y</Name></Blob><Name>p%20q</Name></R>'
    ).decode()

    assert f"<Key>{passable('a+b%20&<' + chr(0) + chr(10))}</Key>" in written
    assert f"<Name>{passable('x' + chr(1) + '//y')}</Name>" in written
    assert "<Name>p%20q</Name>" in written


def test_a_relay_signs_for_nobody_else() -> None:
    store = relayed_store("s3://ID:secret@b?region=x&endpoint_override=127.0.0.1:9&scheme=http")
    relay = store.config["endpoint"]

    # Nobody listens at the bucket's own address.
    assert requests.get(f"{relay}?list-type=2", timeout=5).status_code == 502
    assert requests.get(f"{relay[:-1]}?list-type=2", timeout=5).status_code == 403
    assert requests.get(f"{relay}/a", timeout=5).status_code == 403
    assert requests.put(relay, b"", timeout=5).status_code == 501
    with socket.create_connection(("127.0.0.1", urlsplit(relay).port), timeout=5) as raw:
        raw.sendall(b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 403 ")


def test_a_relay_asks_no_other_host() -> None:
    forward = _as_it_came("http://127.0.0.1:9/bucket")

    assert forward("/bucket?list-type=2", {}) == ("http://127.0.0.1:9/bucket?list-type=2", {})
    assert forward("@127.0.0.1:8/bucket", {}) is None
    assert forward("/other?list-type=2", {}) is None


def test_a_relay_is_not_asked_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/secret"
        store = build_store("s3://b?region=x&anonymous=true", address=address, past_proxies=True)
        with pytest.raises(FileNotFoundError):
            store.head("a")
        server.shutdown()

    assert asked == ["/secret/a"]


def test_a_listing_of_a_public_bucket_is_not_signed() -> None:
    root_uri = "s3://b?region=x&anonymous=true"
    forward = _signed_anew(root_uri, bucket_address(root_uri), "/secret", {"anonymous": "true"})

    assert forward("/secret?list-type=2", {}) == (f"{bucket_address(root_uri)}?list-type=2&encoding-type=url", {})


def test_the_relay_signs_a_listing_as_aws_asks_for() -> None:
    root_uri = "s3://AKID:sec%2Fret@b?region=eu-west-1"
    forward = _signed_anew(root_uri, bucket_address(root_uri), "/secret", {})

    forwarded = forward("/secret?list-type=2&prefix=in%20x%2F&start-after=in%2Fa%2B", {})

    assert forwarded is not None
    place = urlsplit(forwarded[0])
    query = parse_qsl(place.query, keep_blank_values=True)
    signature = dict(query)["X-Amz-Signature"]
    assert {("list-type", "2"), ("prefix", "in x/"), ("start-after", "in/a+"), ("encoding-type", "url")} < set(query)
    canonical = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(query)
        if name != "X-Amz-Signature"
    )
    request = f"GET\n{place.path}\n{canonical}\nhost:{place.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    date = dict(query)["X-Amz-Date"]
    scope = f"{date[:8]}/eu-west-1/s3/aws4_request"
    key = b"AWS4sec/ret"
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    assert hmac.new(key, text.encode(), "sha256").hexdigest() == signature


def test_stores_of_other_addresses_are_not_those_of_the_bucket() -> None:
    root_uri = "s3://AKID:secret@b?region=x&endpoint_override=host"

    assert open_store(root_uri) is Location("b", "", root_uri).object("a/b.jpg")[0]
    assert open_store(root_uri) is not Location("b", "", root_uri).object("a//b.jpg")[0]
