"""Listings that break off, or come upon a name that is no path, go on where they were: nothing twice, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from obstore.exceptions import InvalidPathError

from models.errors import StorageError
from pipeline.storage import object_listing
from pipeline.storage.location import Location
from pipeline.storage.object_listing import ObjectListing
from pipeline.storage.odd_keys import is_path, passable

# As a store with folders of its own orders them: not by bytes.
KEYS = ["a", "b/x", "b-x", "c//d", "c//e", "f", "g"]
PLACE = {"s3": "s3://b?region=x", "az": "az://b?account_name=x"}


class FakeStore:
    """A store that lists its keys by pages of two, and once breaks off after the first that a relay passes on."""

    def __init__(self, keys: list[str], *, relayed: bool) -> None:
        self.keys = keys
        self.breaks = relayed
        self.relayed = relayed
        self.offsets: list[str | None] = []

    def list(self, prefix: str | None, *, offset: str | None, chunk_size: int) -> Iterator[list[dict[str, Any]]]:
        assert offset is None or is_path(offset)
        self.offsets.append(offset)
        keys = self.keys[self.keys.index(offset) + 1 if offset in self.keys else 0 :]
        for start in range(0, len(keys), 2):
            if start and self.breaks:
                self.breaks = False
                raise TimeoutError
            page = keys[start : start + 2]
            if not self.relayed and not all(map(is_path, page)):
                raise InvalidPathError(page[0])
            yield [{"path": passable(key)} for key in page]


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeStore, FakeStore]:
    keys = list(KEYS)
    plain, relayed = FakeStore(keys, relayed=False), FakeStore(keys, relayed=True)
    monkeypatch.setattr(object_listing, "relayed_store", lambda root_uri: relayed)
    return plain, relayed


def listing_of(store: FakeStore, kind: str) -> ObjectListing:
    return ObjectListing(SimpleNamespace(store=store, root_uri=PLACE[kind], describe=str), "", 2)  # type: ignore[arg-type]


def page(listing: ObjectListing, tries: int = 3) -> list[str]:
    for _ in range(tries):
        try:
            return [meta["path"] for meta in listing.page()]
        except TimeoutError:
            continue
    raise TimeoutError


def test_a_listing_that_breaks_off_at_and_behind_odd_names_is_whole(stores: tuple[FakeStore, FakeStore]) -> None:
    listing = listing_of(stores[0], "s3")

    found = [page(listing) for _ in range(5)]

    assert found == [["a", "b/x"], ["b-x", "c//d"], ["c//e"], ["f", "g"], []]
    assert stores[0].offsets == [None]
    # Behind the last name that is a path; what came since is passed over.
    assert stores[1].offsets == ["b/x", "b-x"]


def test_a_store_that_begins_behind_no_name_is_listed_from_the_start(stores: tuple[FakeStore, FakeStore]) -> None:
    listing = listing_of(stores[0], "az")

    found = [page(listing) for _ in range(4)]

    assert found == [["a", "b/x"], ["b-x", "c//d"], ["c//e", "f"], ["g"]]
    assert [*stores[0].offsets, *stores[1].offsets] == [None, None, None]


def test_an_odd_name_that_goes_away_while_it_is_listed_is_an_error(stores: tuple[FakeStore, FakeStore]) -> None:
    listing = listing_of(stores[0], "s3")
    found = [page(listing) for _ in range(2)]
    assert found[-1][-1] == "c//d"

    stores[1].keys.remove("c//d")

    with pytest.raises(StorageError, match=r"cannot list .*c//d was deleted during the listing; run the command again"):
        page(listing)


def test_a_name_that_xml_cannot_hold_ends_no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    class Server(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            is_url = "encoding-type=url" in urlsplit(self.path).query
            key, kind = (quote("a\0//b"), "<EncodingType>url</EncodingType>") if is_url else ("a&#x0;//b", "")
            body = (
                f"<R>{kind}<Contents><Key>{key}</Key><Size>1</Size><ETag>x</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></R>"
            ).encode()
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    root_uri = f"s3://b?region=x&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"

    found = page(ObjectListing(Location("b", "s3://b", root_uri), "", 10))

    server.shutdown()
    server.server_close()
    assert found == ["a\0//b"]
