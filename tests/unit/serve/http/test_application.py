"""The endpoint's own routes, keys, counts and log, and how errors leave it."""

from __future__ import annotations

import asyncio
import html.parser
import json
import os
from types import SimpleNamespace

import pytest

from models.errors import ConfigError, OverloadedError
from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.application import route_name
from serve.http.in_flight import Extras
from serve.http.keys import ApiKeys
from serve.metrics import ServeMetrics
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import MODEL, FakeBackend

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JPEG = b"\xff\xd8\xff" + b"\0" * 3
CONFIG = ServeConfig(model="efficientnet-lite0")


def ask(method: str, path: str, body: bytes = b"", *, extras: Extras | None = None, **headers: str) -> Response:
    return asyncio.run(request(build_asgi(Models(FakeBackend()), CONFIG, extras), method, path, body, **headers))


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/classify/", "/v1/classify/x", "/..", "//", "/v3/models",
                                  "/healthz\n", "/v1/classify\n"])  # fmt: skip
def test_an_unknown_path_is_404_in_json(path):
    response = ask("GET", path)

    assert response.status == 404
    assert list(response.json) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/v1/classify", "POST"), ("DELETE", "/v1/classify", "POST"), ("POST", "/docs", "GET, HEAD"),
     ("PUT", "/metrics", "GET, HEAD"), ("POST", "/openapi.json", "GET, HEAD"), ("PATCH", "/healthz", "GET, HEAD")],
)  # fmt: skip
def test_another_method_is_405_and_names_those_there_are(method, path, allow):
    response = ask(method, path)

    assert response.status == 405
    assert response.headers["allow"] == allow
    assert list(response.json) == ["error"]


def test_health_follows_the_model():
    backend = FakeBackend()
    app = build_asgi(Models(backend), CONFIG)

    ready = asyncio.run(request(app, "GET", "/healthz"))
    backend.is_ready = False
    not_ready = asyncio.run(request(app, "GET", "/healthz"))

    assert (ready.status, not_ready.status) == (200, 503)
    assert int(not_ready.headers["retry-after"]) >= 1


def test_the_docs_page_needs_nothing_from_outside():
    class Addresses(html.parser.HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            assert tag != "script"
            self.found += [value for name, value in attrs if name in ("src", "href")]

    page = ask("GET", "/docs")
    Addresses().feed(page.body.decode())

    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/classify" in page.body.decode()
    assert all("//" not in address for address in Addresses.found)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("# of the mobile app\nsecret-key-1\n\n  secret-key-2  \n")
    return path


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("", 401), ("Bearer", 401), ("Bearer ", 401), ("Bearer wrong-key", 401), ("Basic secret-key-1", 401),
     ("secret-key-1", 401), ("Bearer secret-key-1x", 401), ("Bearer secret-key-1", 200), ("bearer  secret-key-2 ", 200),
     ("Bearer # of the mobile app", 401), ("Bearer \xff", 401)],
)  # fmt: skip
def test_a_key_of_the_file_opens_the_endpoint_and_nothing_else_does(keys, authorization, status):
    headers = {} if authorization is None else {"authorization": authorization}

    response = ask("POST", "/v1/classify", JPEG, extras=Extras(keys=ApiKeys(keys)), **headers)

    assert response.status == status
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert list(response.json) == ["error"]


def test_all_routes_but_health_and_the_page_ask_for_the_key(keys):
    extras = Extras(keys=ApiKeys(keys))
    closed = ("/docs", "/metrics", "/nope", "/openapi.json", "/v2/models", "/v2/../healthz", "/page", "/v1/classify")
    opened = ("/healthz", "/v2/health/ready", "/", "/page/state", "/page/samples/chelsea.jpg")

    assert {path: ask("GET", path, extras=extras).status for path in closed} == dict.fromkeys(closed, 401)
    assert {path: ask("GET", path, extras=extras).status for path in opened} == dict.fromkeys(opened, 200)


def test_a_changed_file_of_keys_is_noticed_and_a_broken_one_is_not_taken(keys, monkeypatch):
    monkeypatch.setattr("serve.http.keys.RELOAD_S", 0.0)
    known = ApiKeys(keys)

    keys.write_text("another-key\n")
    os.utime(keys, ns=(1, 1))
    known.check("Bearer another-key")
    keys.write_text("")
    known.check("Bearer another-key")

    with pytest.raises(Exception, match="not known"):
        known.check("Bearer secret-key-1")


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n", "\xff"])
def test_a_file_without_a_usable_key_is_refused_at_the_start(tmp_path, content):
    path = tmp_path / "keys.txt"
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(ConfigError, match="keys"):
        ApiKeys(path)


def test_requests_errors_and_seconds_are_counted_by_route():
    metrics = ServeMetrics("m", "r1")
    metrics.show_models([SimpleNamespace(spec=SimpleNamespace(name="m"), queued=7, drift=None)])
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(metrics=metrics))

    for body in (JPEG, JPEG, b"bad"):
        asyncio.run(request(app, "POST", "/v1/classify", body))
    asyncio.run(request(app, "GET", "/made/up/path"))
    text = metrics.render().decode()

    labels = 'model="m",replica="r1"'
    assert f'shardlabel_requests_total{{{labels},route="/v1/classify",status="200"}} 2.0' in text
    assert f'shardlabel_errors_total{{kind="undecodable",{labels},route="/v1/classify"}} 1.0' in text
    assert f'shardlabel_requests_total{{{labels},route="other",status="404"}} 1.0' in text
    assert f'shardlabel_request_seconds_count{{{labels},route="/v1/classify"}} 3.0' in text
    assert f"shardlabel_queue_depth{{{labels}}} 7.0" in text
    assert f"shardlabel_in_flight{{{labels}}} 0.0" in text
    assert "made" not in text


def test_metrics_have_few_routes_whatever_is_asked_for():
    assert {route_name(f"/{i}/x") for i in range(100)} == {"other"}
    assert {route_name(f"/v2/models/{i}/infer") for i in range(9)} == {"/v2/models/infer"}
    assert {route_name(f"/models/{i}") for i in range(9)} == {"/models"}


def test_the_access_log_has_a_json_line_per_request(tmp_path):
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    app = build_asgi(Models(FakeBackend()), CONFIG, Extras(access_log=log))

    asyncio.run(request(app, "POST", "/v1/classify", JPEG, x_request_id="abc", content_length="6"))
    asyncio.run(request(app, "POST", "/v1/classify", b"bad\n", traceparent=TRACEPARENT))
    asyncio.run(request(app, "POST", "/v1/\udcff", content_length="9" * 30))
    log.close()
    first, second, third = (json.loads(line) for line in path.read_text().splitlines())

    assert first.keys() == {"time", "client", "method", "path", "status", "ms", "bytes", "request_id"}
    assert (first["status"], first["request_id"], first["bytes"]) == (200, "abc", 6)
    assert (second["status"], second["error"]) == (422, "undecodable")
    assert second["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (third["status"], third["path"], third["bytes"]) == (404, "/v1/?", None)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embeddings", f"/models/{MODEL}", f"/v2/models/{MODEL}/infer"])
def test_the_queue_is_asked_before_a_body_is_read(path):
    async def never():
        raise AssertionError("the body was read")

    app = build_asgi(Models(FakeBackend(full=OverloadedError("overloaded", retry_after_s=3.0))), CONFIG)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    asyncio.run(app(scope, never, send))

    assert sent[0]["status"] == 503
    assert (b"retry-after", b"3") in sent[0]["headers"]


def test_head_has_the_headers_of_get_and_no_body():
    got, asked = ask("GET", "/docs"), ask("HEAD", "/docs")

    assert asked.status == 200
    assert asked.headers["content-length"] == got.headers["content-length"] == str(len(got.body))
    assert asked.body == b""


def test_a_name_that_no_utf_8_holds_is_refused_in_json():
    response = ask("GET", "/v2/models/\ud800")

    assert response.status == 404
    assert list(response.json) == ["error"]


def test_lifespan_is_answered():
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    asyncio.run(build_asgi(Models(FakeBackend()), CONFIG)({"type": "lifespan"}, receive, send))

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_request_whose_client_left_is_counted_and_forgotten():
    metrics = ServeMetrics("m", "r1")
    metrics.show_models([FakeBackend(name="m")])
    app = build_asgi(Models(FakeBackend(delay_s=5)), CONFIG, Extras(metrics=metrics))

    async def leave():
        task = asyncio.create_task(request(app, "POST", "/v1/classify", JPEG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    text = metrics.render().decode()

    assert 'shardlabel_requests_total{model="m",replica="r1",route="/v1/classify",status="499"} 1.0' in text
    assert 'shardlabel_errors_total{kind="gone",model="m",replica="r1",route="/v1/classify"} 1.0' in text
    assert 'shardlabel_in_flight{model="m",replica="r1"} 0.0' in text
