"""Whatever a row says is a place, or refused; and never a server that it chose by the name of a bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.fetch.faults import RefusedError
from pipeline.fetch.places import Places, Stored
from pipeline.fetch.settings import FetchSettings
from pipeline.storage.storage import Storage, open_storage

BASES = [open_storage("/data"), open_storage("s3://bucket/in"), open_storage("http://host/in")]
SCHEMES = ["", "http://", "https://", "s3://", "gs://", "az://", "abfss://", "file://", "ftp://", "data:", "//", "s3:/"]
PIECES = st.sampled_from(
    ["bucket", "/", "a.jpg", "..", ".", "@", ":", "#", "?", "&a=b", "[", "]", "%2f", "%", "\0", "\n", " ", "ü", "🙂",
     "\ud800", "key:secret@", "localhost:80", "c@x.dfs.core.windows.net", "\\", "127.0.0.1", "endpoint_override=h"]
)  # fmt: skip


def found(base: Storage, uri: str) -> URL | Stored | RefusedError:
    try:
        return Places(base, "m.parquet", FetchSettings()).find(uri)
    except RefusedError as err:
        return err


@given(
    base=st.sampled_from(BASES),
    scheme=st.sampled_from(SCHEMES),
    rest=st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=30)),
)
def test_whatever_a_row_says_is_a_place_or_refused(base, scheme, rest):
    place = found(base, scheme + rest)

    if isinstance(place, RefusedError):
        assert place.status == "unsupported"
        assert "secret" not in str(place)
    elif isinstance(place, URL):
        assert place.scheme in ("http", "https")
        assert place.host
        assert place.user is None
    else:
        assert not set(place.storage.root_uri.partition("?")[0]) & set("#[]\\ \n\0")
        assert "secret" not in place.storage.root_uri
        assert base.is_local or not place.storage.is_local


def test_a_bucket_of_the_manifest_is_reached_as_the_manifest_is():
    base = open_storage("s3://KEY:SECRET@bucket/in?endpoint_override=minio:9000&scheme=http")
    places = Places(base, "m.parquet", FetchSettings(storage_options={"s3": "region=eu-west-1"}))

    own, beside, other = (places.find(uri) for uri in ("s3://bucket/a.jpg", "x/a.jpg", "s3://other/a.jpg"))

    assert isinstance(own, Stored)
    assert isinstance(beside, Stored)
    assert isinstance(other, Stored)
    assert own.storage.root_uri == beside.storage.root_uri == base.root_uri
    assert (own.name, beside.name) == ("a.jpg", "in/x/a.jpg")
    assert "SECRET" not in other.storage.root_uri
    assert "region=eu-west-1" in other.storage.root_uri


@pytest.mark.parametrize("uri", ["az://container/a.jpg", "abfss://container@account.dfs.core.windows.net/a.jpg"])
def test_azure_is_named_in_its_two_ways(uri):
    place = Places(BASES[0], "m.parquet", FetchSettings()).find(uri)

    assert isinstance(place, Stored)
    assert (place.name, place.storage.root) == ("a.jpg", "container")


@pytest.mark.parametrize(
    ("uri", "account"),
    [("az://images/k.jpg", "mine"), ("abfss://images@mine.dfs.core.windows.net/k.jpg", "mine"),
     ("abfss://images@other.dfs.core.windows.net/k.jpg", "other"), ("az://other@images/k.jpg", "other")],
)  # fmt: skip
def test_a_container_is_of_its_own_account(uri, account):
    base = open_storage("abfss://images@mine.dfs.core.windows.net/in")

    place = Places(base, "m.parquet", FetchSettings()).find(uri)

    assert isinstance(place, Stored)
    assert f"account_name={account}" in place.storage.root_uri
