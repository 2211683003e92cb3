"""POST /v1/embeddings: our bodies and those of OpenAI's clients."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest

from serve.config import ServeConfig
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend

MODEL = "efficientnet-lite0"
JPEG = b"\xff\xd8\xff" + b"\0" * 3
B64 = base64.b64encode(JPEG).decode()
BAD = base64.b64encode(b"bad").decode()
CONFIG = ServeConfig(model=MODEL, max_images=3)
# What the backend gives for it: its length, and a third in float32.
VALUES = [6.0, float(np.float32(1 / 3))]


def ask(body: object, *, backend: FakeBackend | None = None, path: str = "/v1/embeddings", **headers: str) -> Response:
    is_raw = isinstance(body, bytes)
    content = body if is_raw else json.dumps(body).encode()
    headers.setdefault("content_type", "image/jpeg" if is_raw else "application/json")
    return asyncio.run(request(build_asgi(Models(backend or FakeBackend()), CONFIG), "POST", path, content, **headers))


FORM = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + JPEG + b"\r\n--b--"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (JPEG, "image/jpeg"),
        (FORM, "multipart/form-data; boundary=b"),
        ({"images": [{"b64": B64}]}, "application/json"),
        ({"input": B64}, "application/json"),
        ({"input": [f"data:image/jpeg;base64,{B64}"], "model": MODEL, "user": "me"}, "application/json"),
    ],
    ids=["raw", "form", "images", "input", "data address"],
)
def test_one_image_in_every_form(body, content_type):
    answer = ask(body, content_type=content_type).json

    (row,) = answer.pop("data")
    assert answer == {
        "object": "list", "model": MODEL, "model_version": "1", "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }  # fmt: skip
    # Written with the fewest decimals that stand for the float32.
    assert np.float32(row.pop("embedding")).tolist() == VALUES
    assert row == {"object": "embedding", "index": 0, "status": "ok"}


def test_base64_has_the_same_bits():
    (row,) = ask({"input": [B64], "model": MODEL, "encoding_format": "base64"}).json["data"]

    assert np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() == VALUES


@pytest.mark.parametrize(
    "body", [{"images": [{"b64": B64}, {"b64": BAD}]}, {"input": [B64, BAD]}], ids=["images", "input"]
)
def test_of_several_a_bad_image_is_its_own_error(body):
    response = ask(body)

    good, bad = response.json["data"]
    assert (response.status, good["status"], good["index"]) == (200, "ok", 0)
    assert bad == {
        "object": "embedding", "index": 1, "status": "undecodable",
        "error": "JPEG cannot be decoded: its data are truncated",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "images or input"),
        ({"images": [{"b64": B64}], "input": B64}, 400, "not both"),
        ({"input": []}, 400, "input: List should have at least 1 item"),
        ({"input": [[1, 2]]}, 400, "input[0]: expected an image file in base64"),
        ({"input": "a photo of a cat!"}, 400, "is not base64"),
        ({"input": ["https://example.org/cat.jpg"]}, 400, "nothing is fetched"),
        ({"input": [B64] * 4}, 413, "max_images, 3"),
        ({"input": B64, "model": "text-embedding-3-small"}, 404, "there is efficientnet-lite0"),
        ({"input": B64, "model": 1}, 400, "model: Input should be a valid string; got 1"),
        ({"input": B64, "encoding_format": "int8"}, 400, "'float' or 'base64'"),
        ({"input": B64, "encoding_format": []}, 400, "'float' or 'base64'"),
        ({"input": B64, "dimensions": 2}, 400, "dimensions"),
        ({"input": B64, "top_k": 2}, 400, "top_k: Extra inputs are not permitted"),
        ({"input": BAD}, 422, "cannot be decoded"),
        (b"bad", 422, "cannot be decoded"),
    ],
    ids=str,
)
def test_errors_have_our_form_and_status(body, status, says):
    response = ask(body)

    assert (response.status, list(response.json)) == (status, ["error"])
    assert says in response.json["error"]


def test_a_model_without_embeddings_is_404_and_says_how_to_have_them():
    backend = FakeBackend()
    backend.spec = backend.spec.model_copy(update={"embedding": None})

    response = ask(JPEG, backend=backend)

    assert response.status == 404
    assert "names no embedding tensor" in response.json["error"]
    assert "models add --embedding" in response.json["error"]
    assert backend.seen == []


def test_a_model_in_the_query_and_another_in_the_body_are_400():
    response = ask({"input": B64, "model": "other"}, path=f"/v1/embeddings?model={MODEL}")

    assert (response.status, "given twice" in response.json["error"]) == (400, True)
