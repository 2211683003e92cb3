"""POST /models/M, as Hugging Face's documentation has it."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from serve.config import ServeConfig
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend

MODEL = "efficientnet-lite0"
JPEG = b"\xff\xd8\xff" + b"\0" * 3
B64 = base64.b64encode(JPEG).decode()
CONFIG = ServeConfig(model=MODEL, top_k=2)


def ask(body: object, *, model: str = MODEL, backend: FakeBackend | None = None, **headers: str) -> Response:
    is_raw = isinstance(body, bytes)
    content = body if is_raw else json.dumps(body).encode()
    headers.setdefault("content_type", "image/jpeg" if is_raw else "application/json")
    return asyncio.run(
        request(build_asgi(Models(backend or FakeBackend()), CONFIG), "POST", f"/models/{model}", content, **headers)
    )


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "application/octet-stream", "", "application/x-www-form-urlencoded"]
)
def test_a_raw_body_is_one_image(content_type):
    backend = FakeBackend()

    response = ask(JPEG, backend=backend, content_type=content_type, accept="image/png")

    assert response.json == [{"label": "red", "score": 0.75}, {"label": "green", "score": 0.125}]
    assert backend.seen == [JPEG]


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 2),
        ({"parameters": None}, 2),
        ({"parameters": {}}, 2),
        ({"parameters": {"top_k": 1}}, 1),
        ({"parameters": {"top_k": 3, "function_to_apply": "softmax"}}, 3),
        ({"parameters": {"top_k": None, "function_to_apply": None}, "options": {"wait_for_model": True}}, 2),
    ],
)
def test_json_is_an_image_in_base64_with_parameters(more, count):
    backend = FakeBackend()

    response = ask({"inputs": B64, **more}, backend=backend)

    assert [row["label"] for row in response.json] == ["red", "green", "blue"][:count]
    assert backend.seen == [JPEG]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ([], 400, "valid dictionary"),
        ({}, 400, "inputs: Field required"),
        ({"inputs": [B64]}, 400, "expected an image file in base64"),
        ({"inputs": "https://example.org/cat.jpg"}, 400, "nothing is fetched"),
        ({"inputs": B64, "more": 1}, 400, "more: Extra inputs"),
        ({"inputs": B64, "parameters": 5}, 400, "parameters: Input should be a valid dictionary"),
        ({"inputs": B64, "parameters": {"k": 1}}, 400, "parameters.k: Extra inputs"),
        ({"inputs": B64, "parameters": {"top_k": 4}}, 400, "between 1 and 3"),
        (
            {"inputs": B64, "parameters": {"top_k": "2"}},
            400,
            "parameters.top_k: Input should be a valid integer; got '2'",
        ),
        (
            {"inputs": B64, "parameters": {"function_to_apply": "sigmoid"}},
            400,
            "parameters.function_to_apply: Input should be 'softmax'",
        ),
        ({"inputs": base64.b64encode(b"bad").decode()}, 422, "cannot be decoded"),
        (b"bad", 422, "cannot be decoded"),
    ],
    ids=str,
)
def test_errors_have_our_form_and_status(body, status, says):
    response = ask(body)

    assert (response.status, list(response.json)) == (status, ["error"])
    assert says in response.json["error"]


def test_another_model_is_404_and_a_form_415():
    unknown = ask(JPEG, model="google")

    assert (unknown.status, "there is efficientnet-lite0" in unknown.json["error"]) == (404, True)
    assert ask(JPEG, content_type="multipart/form-data; boundary=x").status == 415


def test_the_query_may_say_top_k_too_and_twice_must_agree():
    once = ask(JPEG, model=f"{MODEL}?top_k=1")
    twice = ask({"inputs": B64, "parameters": {"top_k": 2}}, model=f"{MODEL}?top_k=1")

    assert [row["label"] for row in once.json] == ["red"]
    assert (twice.status, "given twice" in twice.json["error"]) == (400, True)
