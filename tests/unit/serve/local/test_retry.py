"""Serve's own proxy ends without an answer where its replica has died: that request is tried once more."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from serve.local.grpc_listener import HELD_BYTES, retry_once


class Proxy:
    """Serve's proxy: reads the body, and gives no answer the first `silent` times."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        body = await Request(scope, receive).body()
        scope["path"] = "/rewritten"
        self.bodies.append(body)
        if len(self.bodies) > self.silent:
            await Response(f"{scope['path']} {len(body)}")(scope, receive, send)


def ask(app, parts: list[bytes]) -> tuple[int, dict[bytes, bytes], bytes]:
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": [], "query_string": b""}
    asyncio.run(retry_once(app)(scope, receive, send))
    return (sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]) if sent else (0, {}, b"")


def test_a_request_that_is_answered_is_not_tried_again():
    proxy = Proxy(silent=0)

    assert ask(proxy, [b"abc"])[0] == 200
    assert proxy.bodies == [b"abc"]


def test_one_that_is_answered_while_its_body_arrives_is_not_tried_again():
    tries = []

    async def refuses(scope, receive, send) -> None:
        tries.append(await receive())
        await Response("no key", 401)(scope, receive, send)
        await receive()

    assert ask(refuses, [b"a", b"b", b"c"])[0] == 401
    assert len(tries) == 1


def test_one_without_an_answer_is_tried_again_with_the_same_body():
    proxy = Proxy(silent=1)

    assert ask(proxy, [b"a" * 1000, b"b" * 1000])[0] == 200
    assert proxy.bodies == [b"a" * 1000 + b"b" * 1000] * 2


@pytest.mark.parametrize(
    ("silent", "size", "tries"),
    [pytest.param(9, 10, 2, id="and not a third time"), pytest.param(9, HELD_BYTES + 1, 1, id="too large to be held")],
)
def test_what_has_no_answer_then_is_503_with_when_to_come_back(silent, size, tries):
    proxy = Proxy(silent)

    status, headers, body = ask(proxy, [b"x" * size, b"y"])

    assert (status, headers[b"retry-after"], len(proxy.bodies)) == (503, b"1", tries)
    assert list(orjson.loads(body)) == ["error"]


def test_a_request_whose_client_has_gone_is_not_tried_again():
    tries = []

    async def gone(scope, receive, send) -> None:
        tries.append(await receive())
        assert (await receive())["type"] == "http.disconnect"

    assert ask(gone, [b"abc"])[0] == 0
    assert len(tries) == 1
