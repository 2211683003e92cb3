"""Fetching: every way in which an image of the web cannot be had, limits, order, memory, and what rows may not name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetch import fetcher, hosts, stored
from pipeline.fetch.fetcher import Fetched, Fetcher
from pipeline.fetch.places import Places
from pipeline.fetch.settings import FetchSettings
from pipeline.storage.storage import open_storage
from tests.support.web_server import IMAGES, WebServer, running_web

MIB = MOST = 2**20


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with running_web() as server:
        yield server


@pytest.fixture
def as_proxy(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """Let the server stand for all hosts."""
    monkeypatch.setenv("HTTP_PROXY", web.url)
    return web


def fetch(
    uris: list[str | None], folder: Path | str = "/", most: int = MOST, manifest: str = "m.parquet", **options: Any
) -> list[Fetched | None]:
    settings = FetchSettings(**{"allow_private_hosts": True, "timeout_s": 5.0, **options})
    places = Places(open_storage(str(folder)), manifest, settings)
    with Fetcher(settings, places, most) as running:
        found = list(running.in_order((number, uri, 0) for number, uri in enumerate(uris)))
    assert [number for number, _ in found] == list(range(len(uris)))
    return [one for _, one in found]


def num_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def one(uri: str, *rest: Any, **options: Any) -> tuple[str | None, str | None]:
    (got,) = fetch([uri], *rest, **options)
    assert got is not None
    assert (got.data is None) == (got.status is not None) == (got.sha256 is None)
    return got.status, got.error


def test_images_come_in_order_with_the_digest_of_their_bytes(web):
    uris = [f"{web.url}/ok/{number}.jpg" for number in range(600)]

    got = fetch([*uris, None])

    assert got.pop() is None
    assert [g.data for g in got if g] == [IMAGES[n % 3] for n in range(600)]
    assert got[4] == Fetched(IMAGES[1], sha256=sha256(IMAGES[1]).hexdigest())


@pytest.mark.parametrize("connections", [1, 3])
def test_a_host_gets_so_many_requests_at_a_time(web, connections):
    fetch([f"{web.url}/late/{number}.jpg" for number in range(12)], connections_per_host=connections)

    # The server may learn late that it has been heard. Without the limit it would be twelve.
    assert connections <= web.most_open <= connections + 2


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("404", "unreachable", "HTTP 404"),
        ("403", "unreachable", "HTTP 403"),
        ("503", "unreachable", "HTTP 503 (4 requests)"),
        ("410", "unreachable", "HTTP 410"),
        ("reset", "unreachable", "the connection was lost (4 requests)"),
        ("cut", "unreachable", "the answer was cut off (4 requests)"),
        ("slow", "unreachable", "not all there within 1 s"),
        ("slow-head", "unreachable", "not all there within 1 s"),
        ("loop", "unreachable", "more than 5 redirects"),
        ("to-file", "unreachable", "a redirect to file:, which is not followed"),
        ("never", "unreachable", "HTTP 429 (1 request, asked to wait 3600 s)"),
        ("large", "too_large", "1000000000000 bytes are more than the 1048576 allowed"),
        ("endless", "too_large", "more bytes than the 1048576 allowed"),
        ("packed", "unsupported", "the answer is packed (gzip), which was not asked for"),
    ],
)
def test_what_cannot_be_had_says_why(web, monkeypatch, kind, status, error):
    monkeypatch.setattr(fetcher, "FIRST_WAIT_S", 0.02)

    assert one(f"{web.url}/{kind}/1.jpg", timeout_s=1.0) == (status, error)


@pytest.mark.parametrize("kind", ["flaky", "busy", "hop", "text", "empty"])
def test_what_mends_by_itself_or_moved_is_had_and_what_an_image_is_others_say(web, kind):
    assert one(f"{web.url}/{kind}/1.jpg") == (None, None)


def test_hosts_that_are_not_there_say_why(web):
    assert one("http://no-such-host.invalid/1.jpg") == ("unreachable", "the host's name cannot be resolved")
    assert one("http://127.0.0.1:9/1.jpg", timeout_s=0.2) == ("unreachable", "cannot connect: connection refused")
    assert one(web.url.replace("http", "https") + "/1.jpg", timeout_s=0.3)[0] == "unreachable"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "10.0.0.1"]
)
def test_private_hosts_are_refused_before_anything_is_sent(web, host):
    status, error = one(f"http://{host}:{web.port}/ok/1.jpg", allow_private_hosts=False)

    assert status == "unreachable"
    assert error is not None
    assert error.startswith("private address ")
    assert "--allow-private-hosts" in error
    assert not web.calls


def test_a_name_that_leads_to_a_private_address_is_refused_however_it_got_there(web, monkeypatch):
    import asyncio

    async def resolved(self: Any, host: str, port: int, **options: Any) -> list[Any]:
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolved)

    status, error = one(f"http://images.example:{web.port}/ok/1.jpg", allow_private_hosts=False)

    assert (status, (error or "")[:25]) == ("unreachable", "private address 127.0.0.1")
    assert not web.calls


def test_numbers_that_mean_a_private_address_are_refused(web):
    for host in ("2130706433", "127.1", "0x7f000001"):
        assert one(f"http://{host}:{web.port}/ok/1.jpg", allow_private_hosts=False)[0] in ("unreachable", "unsupported")
    assert not web.calls


def test_behind_a_proxy_its_hosts_are_had_and_private_ones_are_not(as_proxy):
    uris = ["http://a.example/ok/1.jpg", f"{as_proxy.url}/ok/2.jpg", "http://b.example/to-private/3.jpg"]

    first, second, third = fetch(uris, allow_private_hosts=False)

    assert (first and first.data) == IMAGES[1]
    assert [(g and g.status, ((g and g.error) or "")[:25]) for g in (second, third)] == [
        ("unreachable", "private address 127.0.0.1")
    ] * 2
    assert set(as_proxy.calls) == {"http://a.example/ok/1.jpg", "http://b.example/to-private/3.jpg"}


def test_requests_per_second_are_kept_by_each_host(as_proxy):
    uris = [f"http://{host}.example/ok/{n}.jpg" for n in range(5) for host in "ab"]

    began = time.monotonic()
    got = fetch(uris, requests_per_second=10.0)

    assert all(g and g.data for g in got)
    assert time.monotonic() - began >= 0.35
    assert len(as_proxy.times) == 10


def test_a_slow_host_keeps_no_other_waiting(as_proxy):
    uris = [f"http://slow.example/slow/{n}.jpg" for n in range(10)]
    uris += [f"http://fast.example/ok/{n}.jpg" for n in range(100)]

    began = time.monotonic()
    got = fetch(uris, timeout_s=1.0)

    assert [g and g.status for g in got] == ["unreachable"] * 10 + [None] * 100
    assert time.monotonic() - began < 8  # two rounds of eight, and the others meanwhile; ten one by one take 10 s


def test_a_disk_that_does_not_answer_keeps_no_other_waiting(web, tmp_path, monkeypatch):
    reader, writer = os.pipe()  # stands for a file whose bytes do not come
    (tmp_path / "slow.jpg").write_bytes(b"0123456789")
    look = stored._open
    monkeypatch.setattr(stored, "_open", lambda path: os.dup(reader) if path.endswith("slow.jpg") else look(path))
    pipe, fstat = os.fstat(reader).st_ino, os.fstat
    file = (tmp_path / "slow.jpg").stat()
    monkeypatch.setattr(os, "fstat", lambda fd: file if fstat(fd).st_ino == pipe else fstat(fd))
    answers = threading.Timer(5.0, os.write, (writer, b"0123456789"))
    answers.start()

    got = fetch(["slow.jpg", f"{web.url}/ok/1.jpg"], tmp_path, timeout_s=1.0)

    assert not answers.finished.is_set()
    assert [one and one.status for one in got] == ["unreachable", None]
    answers.join()
    os.close(reader)
    os.close(writer)


def test_a_host_that_fails_again_and_again_is_given_up_and_others_are_not(as_proxy, monkeypatch):
    monkeypatch.setattr(fetcher, "FIRST_WAIT_S", 0.02)
    uris = [f"http://dead.example/503/{n}.jpg" for n in range(200)] + ["http://alive.example/ok/1.jpg"]

    got = fetch(uris)

    assert got[-1] is not None
    assert got[-1].data is not None
    assert got[-2] == Fetched(None, "unreachable", "the host was given up: HTTP 503, 24 times in a row")
    assert sum(as_proxy.calls.values()) < 24 + 8 + 2


def test_a_host_that_asks_to_wait_for_an_hour_is_not_asked_again(as_proxy):
    got = fetch([f"http://busy.example/never/{n}.jpg" for n in range(100)])

    assert {g and g.status for g in got} == {"unreachable"}
    assert sum(as_proxy.calls.values()) <= 8


def test_large_images_wait_for_memory_and_all_come(web, monkeypatch):
    monkeypatch.setattr(fetcher, "AHEAD_BYTES", 3_000_000)
    web.images = [bytes([number]) * 1_000_000 for number in range(8)]
    settings = FetchSettings(allow_private_hosts=True)
    held: list[int] = []

    with Fetcher(settings, Places(open_storage("/"), "m", settings), 2**20) as running:
        for number, got in running.in_order((n, f"{web.url}/ok/{n}.jpg", 0) for n in range(40)):
            assert got is not None
            assert got.data == web.images[number % 8]
            held.append(running._memory._held)
            time.sleep(0.005)

    assert max(held) <= 4_000_000
    assert running._memory._held <= 1_000_000


def test_of_many_hosts_no_connection_stays_open(as_proxy):
    before = num_open()
    seen: list[int] = []
    settings = FetchSettings()
    with Fetcher(settings, Places(open_storage("/"), "m", settings), MOST) as running:
        for number, got in running.in_order((n, f"http://h{n}.example/ok/{n}.jpg", 0) for n in range(600)):
            assert got is not None
            assert got.data is not None
            if number % 100 == 0:
                seen.append(num_open())

    assert max(seen) - before < 150  # both ends are in this process
    time.sleep(0.2)
    assert num_open() - before < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "fetcher"]


def test_leaving_in_the_middle_ends_all_that_is_under_way(web):
    settings = FetchSettings(allow_private_hosts=True)
    began = time.monotonic()
    with Fetcher(settings, Places(open_storage("/"), "m", settings), MOST) as running:
        found = running.in_order((n, f"{web.url}/{'slow' if n else 'ok'}/{n}.jpg", 0) for n in range(100))
        next(found)

    assert time.monotonic() - began < 15


def test_paths_are_relative_to_the_manifest_or_absolute(tmp_path):
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "images" / "1 ü.jpg").write_bytes(IMAGES[0])
    (tmp_path / "outside.jpg").write_bytes(IMAGES[1])
    os.mkfifo(tmp_path / "pipe")
    base, manifest = tmp_path, "in/m.parquet"

    def status(uri: str) -> tuple[str | None, str | None]:
        return one(uri, base, manifest=manifest)

    assert status("images/1 ü.jpg") == (None, None)
    assert status(str(tmp_path / "outside.jpg")) == (None, None)
    assert status("../outside.jpg") == (None, None)
    assert status((tmp_path / "outside.jpg").as_uri()) == (None, None)
    assert status("images/2.jpg") == ("unreachable", "it does not exist")
    assert status("images") == ("unsupported", "not a regular file")
    assert status("../pipe") == ("unsupported", "not a regular file")
    assert status("/dev/zero") == ("unsupported", "not a regular file")
    assert status("a\0b")[0] == "unsupported"
    assert one("outside.jpg", base, most=10) == ("too_large", f"{len(IMAGES[1])} bytes are more than the 10 allowed")


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://host/1.jpg", "data:image/png;base64,AAAA", "http://", "http://user:pass@host/1.jpg", "http://h:99999999/x",
        "http://[::1/x", "s3://bucket", "s3://key:secret@bucket/1.jpg", "s3://bucket/1.jpg?endpoint_override=10.0.0.1",
        "s3://evil.example#/1.jpg", "s3://a:80/1.jpg", "abfss://c@localhost:80#.blob.x/1.jpg", "az://a#b/1.jpg", "s3:///1.jpg",
    ],
)  # fmt: skip
def test_what_is_no_place_that_a_row_may_name_is_unsupported_and_no_secret_is_told(uri):
    status, error = one(uri)

    assert status == "unsupported"
    assert error is not None
    assert "secret" not in error
    assert "pass@" not in error


def test_of_a_manifest_in_a_bucket_files_of_this_machine_are_not_read():
    settings = FetchSettings()
    places = Places(open_storage("s3://bucket/in"), "m.parquet", settings)
    with Fetcher(settings, places, MOST) as running:
        got = [
            g and g.status
            for _, g in running.in_order((uri, uri, 0) for uri in ("/etc/passwd", "file:///etc/passwd", "../x.jpg"))
        ]

    assert got == ["unsupported"] * 3


def test_a_signed_address_is_sent_as_it_is_written(web):
    query = "X-Signature=a%2Fb%2bc%3D&d=%7E~'()*"

    assert one(f"{web.url}/ok/1%2f2,3.jpg?{query}#part") == (None, None)

    assert list(web.calls) == [f"/ok/1%2f2,3.jpg?{query}"]


def test_all_hosts_together_get_no_more_than_the_limit(as_proxy, monkeypatch):
    monkeypatch.setattr(hosts, "CONNECTIONS", 10)

    fetch([f"http://h{n % 25}.example/late/{n}.jpg" for n in range(50)])

    # Of 25 without the limit. The server may learn late that one was closed.
    assert 8 <= as_proxy.most_open <= 12


def test_a_redirect_is_followed_as_it_is_written(web):
    signed = "1%2f2,3.jpg?s=a%2Fb%2bc%3D&d=%7E~'()*"

    assert one(f"{web.url}/hop/{signed}") == (None, None)

    assert list(web.calls) == [f"/hop/{signed}", f"/ok/{signed}"]


@pytest.mark.parametrize(
    ("proxy", "error"),
    [("socks5h://127.0.0.1:1", "proxies of socks5h:// are not spoken to; give an http:// one in HTTP(S)_PROXY"),
     ("http://user:pa/ss@proxy:3128", "the proxy of the environment is no address; its password may have to be escaped")],
)  # fmt: skip
def test_a_proxy_that_cannot_be_asked_is_named_without_its_password(web, monkeypatch, proxy, error):
    monkeypatch.setenv("ALL_PROXY", proxy)

    assert one("http://a.example/ok.jpg") == ("unreachable", error)


def test_items_that_hold_much_are_not_taken_far_ahead(web, monkeypatch):
    monkeypatch.setattr(fetcher, "AHEAD_BYTES", 10 * MIB)
    taken = []
    settings = FetchSettings(allow_private_hosts=True)

    def rows() -> Iterator[tuple[int, str | None, int]]:
        for number in range(100):
            taken.append(number)
            yield number, f"{web.url}/ok/{number}.jpg", 4 * MIB

    with Fetcher(settings, Places(open_storage("/"), "m.parquet", settings), MOST) as running:
        ahead = max(len(taken) - number for number, _ in running.in_order(rows()))

    assert len(taken) == 100
    assert ahead <= 4
