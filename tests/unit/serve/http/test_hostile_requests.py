"""Hostile requests in this process: each is answered, cheaply, and none holds the event loop."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
import time

import pytest

from models.errors import InputError, OverloadedError
from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.http.bodies import BodyMemory, Held
from serve.http.images import Parsed
from serve.http.in_flight import Extras
from serve.http.keys import ApiKeys
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import request
from tests.support.fake_backend import FakeBackend
from tests.support.hostile_requests import BOUNDARY, CORPUS, FORM, MODEL, packed
from tests.support.peak_memory import private_bytes

JPEG = b"\xff\xd8\xff" + b"\0" * 3
CONFIG = ServeConfig(model=MODEL)
TAKES_IMAGES = ("/v1/classify", "/v1/embeddings", f"/models/{MODEL}", f"/v2/models/{MODEL}/infer")
# Those that are one image, of nothing: the decoder is the judge of it.
LABELLED = {"base64_of_nothing_much", "empty_image_of_20_mib"}


async def worst_lag_s(done: asyncio.Event) -> float:
    """Return the longest time for which this loop did nothing else, in CPU time: other processes are busy too."""
    worst = 0.0
    while not done.is_set():
        began = time.thread_time()
        await asyncio.sleep(0.001)
        worst = max(worst, time.thread_time() - began)
    return worst


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_request_is_answered_and_leaves_the_loop_to_others(name):
    hostile = CORPUS[name]()
    headers = {key.replace("-", "_"): value for key, value in hostile.headers.items()}
    memory = BodyMemory(CONFIG.max_body_memory)
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(memory=memory))

    async def ask():
        done = asyncio.Event()
        lag = asyncio.create_task(worst_lag_s(done))
        response = await request(app, "POST", hostile.path, hostile.body, content_type=hostile.content_type, **headers)
        done.set()
        return response, await lag

    response, lag_s = asyncio.run(ask())

    assert response.status in ({200} if name in LABELLED else {400, 413})
    assert lag_s < 0.1
    assert memory.used == 0


def test_the_corpus_takes_little_memory_at_once():
    app = build_asgi(Models(FakeBackend()), CONFIG)
    before = private_bytes(threading.get_native_id())
    peak = [before]

    async def watch(done):
        while not done.is_set():
            peak[0] = max(peak[0], private_bytes(threading.get_native_id()))
            await asyncio.sleep(0.02)

    async def ask_all():
        done = asyncio.Event()
        watching = asyncio.create_task(watch(done))
        await asyncio.gather(
            *[
                request(app, "POST", h.path, h.body, content_type=h.content_type,
                        **{key.replace("-", "_"): value for key, value in h.headers.items()})
                for h in (build() for build in CORPUS.values())
            ]
        )  # fmt: skip
        done.set()
        await watching

    asyncio.run(ask_all())

    assert peak[0] - before < 300 * 2**20


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/classify", "application/json", json.dumps({"images": [{"b64": "/9j/AAAA" * 200}]}).encode()),
        ("/v1/classify", FORM, b'--%s\r\nContent-Disposition: form-data; name="image"\r\n\r\n%s\r\n--%s--'
         % (BOUNDARY, JPEG * 300, BOUNDARY)),
        ("/v1/classify", "image/jpeg", JPEG + bytes(2000)),
        ("/v1/embeddings", "application/json", json.dumps({"input": ["/9j/AAAA" * 200]}).encode()),
        (f"/models/{MODEL}", "application/json", json.dumps({"inputs": "/9j/AAAA" * 200}).encode()),
        (f"/v2/models/{MODEL}/infer", "application/json", json.dumps({"inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/AAAA" * 200]}]}).encode()),
    ],
    ids=["json", "form", "raw", "embeddings", "hugging face", "oip"],
)  # fmt: skip
def test_unpacked_bodies_are_counted_while_they_are_held_whatever_they_are(path, content_type, body, monkeypatch):
    held = []
    memory = BodyMemory(CONFIG.max_body_memory)
    monkeypatch.setattr(memory, "check", lambda size: held.append(memory.used + size))
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(memory=memory))

    response = asyncio.run(
        request(app, "POST", path, gzip.compress(body), content_type=content_type, content_encoding="gzip")
    )

    assert response.status == 200
    assert max(held) >= len(body)
    assert memory.used == 0


def test_packed_bodies_share_the_budget_by_what_they_unpack_to():
    config = ServeConfig(model=MODEL, max_request_bytes=2**20, max_body_memory=3 * 2**20)
    # Long enough for all to come while the first are served.
    app = build_asgi(Models(FakeBackend(delay_s=2.0)), config)
    bomb = packed("/v1/classify", JPEG + bytes(2**20 - 100), "image/jpeg")

    async def many():
        return await asyncio.gather(
            *[request(app, "POST", bomb.path, bomb.body, content_type="image/jpeg", content_encoding="gzip")
              for _ in range(10)]
        )  # fmt: skip

    statuses = [response.status for response in asyncio.run(many())]

    assert 1 <= statuses.count(200) <= 3
    assert statuses.count(503) == 10 - statuses.count(200)


def test_a_length_that_has_no_room_is_503_before_the_body_is_read():
    memory = BodyMemory(1000)
    Held(memory).set(900)
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(memory=memory))

    response = asyncio.run(request(app, "POST", "/v1/classify", b"", gone=True, content_length="200"))

    assert response.status == 503


@pytest.mark.parametrize("path", [*TAKES_IMAGES, "/v2/repository/index"])
def test_every_route_asks_for_the_key_before_it_reads_a_body(path, tmp_path):
    (tmp_path / "keys.txt").write_text("secret-key-1\n")
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(keys=ApiKeys(tmp_path / "keys.txt")))

    response = asyncio.run(request(app, "POST", path, b"", gone=True))

    assert response.status == 401


@pytest.mark.parametrize("path", TAKES_IMAGES)
def test_every_route_asks_the_queue_before_it_reads_a_body(path):
    app = build_asgi(Models(FakeBackend(full=OverloadedError("overloaded", retry_after_s=3.0))), CONFIG)

    response = asyncio.run(request(app, "POST", path, b"", gone=True))

    assert (response.status, response.headers["retry-after"]) == (503, "3")


@pytest.mark.parametrize("path", TAKES_IMAGES)
def test_an_upload_is_part_of_the_deadline(path):
    backend = FakeBackend()
    app = build_asgi(Models(backend), ServeConfig(model=MODEL, deadline_s=0.2))
    sent = []

    async def never():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(app(scope, never, send), 10))

    assert sent[0]["status"] == 504


def test_what_is_still_parsed_for_nobody_is_given_back_too(monkeypatch):
    memory = BodyMemory(CONFIG.max_body_memory)
    app = build_asgi(Models(FakeBackend()), ServeConfig(model=MODEL, deadline_s=0.2), Extras(memory=memory))
    parsed = threading.Event()

    def slow(*arguments):
        time.sleep(0.6)
        parsed.set()
        return Parsed([JPEG])

    monkeypatch.setattr("serve.http.images._parse_form", slow)

    response = asyncio.run(
        request(app, "POST", "/v1/classify", gzip.compress(JPEG * 1000), content_type=FORM,
                content_encoding="gzip")
    )  # fmt: skip

    assert response.status == 504
    assert parsed.wait(10)
    time.sleep(0.1)
    assert memory.used == 0


def test_a_part_with_endless_headers_is_refused_without_reading_them_all():
    part = b"--hostile\r\n" + b"a:b\r\n" * 1500 + b'Content-Disposition: form-data; name="image"\r\n\r\nx\r\n'

    response = asyncio.run(
        request(
            build_asgi(Models(FakeBackend()), CONFIG), "POST", "/v1/classify", part + b"--hostile--", content_type=FORM
        )
    )

    assert response.status == 400
    assert "header" in response.json["error"]


def test_a_forms_field_name_is_not_looked_for_inside_a_file_name():
    part = (
        b'--hostile\r\nContent-Disposition: form-data; filename="a; name=top_k"; name="image"\r\n\r\n' + JPEG + b"\r\n"
    )

    response = asyncio.run(
        request(
            build_asgi(Models(FakeBackend()), CONFIG), "POST", "/v1/classify", part + b"--hostile--", content_type=FORM
        )
    )

    assert response.status == 200


@pytest.mark.parametrize("ready", ["false", 0, 1, [], None])
def test_the_repository_index_takes_only_a_boolean(ready):
    app = build_asgi(Models(FakeBackend()), CONFIG)

    response = asyncio.run(request(app, "POST", "/v2/repository/index", json.dumps({"ready": ready}).encode()))

    assert response.status == 400
    assert "ready: Input should be a valid boolean" in response.json["error"]


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(packed("/v1/classify", bytes(30 * 2**20), "image/png"), id="refused"),
        pytest.param(packed("/v1/classify", b"bad" + bytes(2**20), "image/png"), id="undecodable"),
        pytest.param(packed("/v1/classify", b"{" + bytes(2**20)), id="not JSON"),
    ],
)
def test_a_refused_request_is_forgotten_without_waiting_for_the_collector(hostile):
    app = build_asgi(Models(FakeBackend()), CONFIG)
    gc.collect()
    earlier = {id(each) for each in gc.get_objects() if isinstance(each, Rejected | InputError)}
    gc.disable()
    try:
        response = asyncio.run(
            request(app, "POST", hostile.path, hostile.body, content_type=hostile.content_type,
                    content_encoding="gzip")
        )  # fmt: skip
        until = time.monotonic() + 5  # the thread may still be at its last line
        while kept := [
            each for each in gc.get_objects() if isinstance(each, Rejected | InputError) and id(each) not in earlier
        ]:
            if time.monotonic() > until:
                break
            time.sleep(0.02)
    finally:
        gc.enable()

    assert response.status >= 400
    assert kept == []
