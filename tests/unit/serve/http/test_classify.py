"""POST /v1/classify with a backend whose answers are known: every way in, every way to be wrong."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from models.errors import (
    DeadlineError,
    EmptyImageError,
    ImageTooLargeError,
    InferenceError,
    OverloadedError,
    UndecodableImageError,
    UnsupportedImageError,
)
from serve.config import ServeConfig
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend

JPEG = b"\xff\xd8\xff" + b"\0" * 3  # 6 bytes: class 0
OTHER = b"\xff\xd8\xff" + b"\0" * 4  # 7 bytes: class 1


def post(body: bytes, path: str = "/v1/classify", *, backend: FakeBackend | None = None, **more) -> Response:
    settings = more.pop("settings", {})
    app = build_asgi(Models(backend or FakeBackend()), ServeConfig(model="efficientnet-lite0", **settings))
    return asyncio.run(request(app, "POST", path, body, **more))


def form(*fields: tuple[str, bytes], boundary: str = "xYz") -> tuple[bytes, str]:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'.encode() + content
        for name, content in fields
    ]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def in_json(*images: bytes, **more: object) -> bytes:
    return json.dumps({"images": [{"b64": base64.b64encode(i).decode()} for i in images], **more}).encode()


def ids(response: Response) -> list[list[int]]:
    return [[label["label_id"] for label in r["labels"]] for r in response.json["results"]]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/octet-stream", "IMAGE/JPEG; x=y", None])
def test_a_raw_body_is_one_image(kind):
    response = post(JPEG, **({"content_type": kind} if kind else {}))

    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json == {
        "model": "efficientnet-lite0",
        "model_version": "1",
        "results": [
            {
                "status": "ok",
                "width": 20,
                "height": 16,
                "labels": [
                    {"label": "red", "label_id": 0, "score": 0.75},
                    {"label": "green", "label_id": 1, "score": 0.125},
                    {"label": "blue", "label_id": 2, "score": 0.125},
                ],
            }
        ],
    }


def test_what_curl_sends_by_default_is_an_image_if_it_begins_like_one():
    kind = {"content_type": "application/x-www-form-urlencoded"}

    assert post(JPEG, **kind).status == 200
    assert post(b"a=b", **kind).status == 415


@pytest.mark.parametrize(
    "sent",
    [b'{"images": []}', JPEG.replace(b"\0", b""), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".translate(None, b"\r\n\0")],
    ids=["JSON", "JPEG", "PNG"],
)
def test_what_curl_sends_by_d_is_told_how_to_be_sent(sent):
    response = post(sent, content_type="application/x-www-form-urlencoded")

    assert response.status == 415
    assert "--data-binary @FILE" in response.json["error"]
    assert "-H 'Content-Type: image/jpeg'" in response.json["error"]


def test_a_form_has_an_image_per_field_in_order():
    body, kind = form(("image", JPEG), ("image", OTHER))

    response = post(body, content_type=kind)

    assert ids(response) == [[0, 1, 2], [1, 2, 0]]


def test_a_forms_content_may_hold_line_breaks_and_dashes():
    backend = FakeBackend()
    content = b"\xff\xd8\xff\r\n--xY\r\n\r\n--\r\n"
    body, kind = form(("image", content), ("top_k", b"1"))

    response = post(body, content_type=kind, backend=backend)

    assert backend.seen == [content]
    assert len(response.json["results"][0]["labels"]) == 1


def test_json_has_images_in_base64():
    response = post(in_json(JPEG, OTHER, top_k=2), content_type="application/json")

    assert ids(response) == [[0, 1], [1, 2]]


def test_base64_may_be_broken_into_lines_or_be_a_data_address():
    text = base64.encodebytes(JPEG * 20).decode()
    lines = json.dumps({"images": [{"b64": text}, {"b64": "data:image/jpeg;base64," + text.replace("\n", "")}]})
    backend = FakeBackend()

    assert post(lines.encode(), content_type="application/json", backend=backend).status == 200
    assert backend.seen == [JPEG * 20] * 2


@pytest.mark.parametrize(("query", "expected"), [("?top_k=1", 1), ("?top_k=3", 3), ("", 3)])
def test_top_k_comes_from_the_query(query, expected):
    assert len(post(JPEG, f"/v1/classify{query}").json["results"][0]["labels"]) == expected


@pytest.mark.parametrize(
    ("path", "name", "known"),
    [
        ("/v1/classify?topk=2", "topk", "top_k, model"),
        ("/v1/classify?top_k=1&k=", "k", "top_k, model"),
        ("/v1/embeddings?top_k=2", "top_k", "model"),
        ("/models/efficientnet-lite0?topk=2", "topk", "top_k"),
    ],
)
def test_a_query_parameter_that_there_is_not_is_400_and_says_which_there_are(path, name, known):
    response = post(JPEG, path)

    assert response.status == 400
    assert repr(name) in response.json["error"]
    assert response.json["error"].endswith(f"takes {known}")


@pytest.mark.parametrize("top_k", ["0", "4", "-1", "x", "", "1.5", "999999999999999999999", "٣"])
def test_a_top_k_that_cannot_be_is_400(top_k):
    from urllib.parse import quote

    response = post(JPEG, f"/v1/classify?top_k={quote(top_k)}")

    assert response.status == 400
    assert "top_k" in response.json["error"]


def test_a_bad_image_among_others_is_its_own_result():
    body, kind = form(("image", b"bad"), ("image", JPEG), ("image", b""))

    response = post(body, content_type=kind)

    assert response.status == 200
    assert response.json["results"][0] == {
        "status": "undecodable",
        "error": "JPEG cannot be decoded: its data are truncated",
        "width": 4,
        "height": 2,
    }
    assert response.json["results"][1]["status"] == "ok"


def test_broken_base64_among_others_is_its_own_result_and_alone_malformed():
    good = base64.b64encode(JPEG).decode()
    both = json.dumps({"images": [{"b64": "!!"}, {"b64": good}]}).encode()
    alone = json.dumps({"images": [{"b64": "!!"}]}).encode()

    statuses = [r["status"] for r in post(both, content_type="application/json").json["results"]]

    assert statuses == ["undecodable", "ok"]
    assert post(alone, content_type="application/json").status == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UndecodableImageError("x"), 422),
        (UnsupportedImageError("x"), 415),
        (ImageTooLargeError("x", width=1, height=2), 413),
        (EmptyImageError("x"), 400),
        (OverloadedError("x", retry_after_s=1.2), 503),
        (DeadlineError("x"), 504),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_has_its_status(error, status):
    backend = FakeBackend()
    backend.error = error

    response = post(JPEG, backend=backend)

    assert response.status == status
    assert response.json == {"error": "x"}
    assert response.headers.get("retry-after") == ("2" if status == 503 else None)


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), InferenceError("/secret/path: failed")])
def test_a_fault_of_ours_tells_nothing_of_the_inside(error):
    backend = FakeBackend()
    backend.error = error

    response = post(JPEG, backend=backend)

    assert response.status == 500
    assert "secret" not in response.body.decode()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"{}", b'{"images": {}}', b'{"images": []}', b'{"images": ["x"]}', b"\xff\xfe\xff",
     b'{"images": [{"url": "http://x"}]}', b'{"images": [{"b64": 1}]}', b'{"images": [{"b64": "eA=="}], "k": 1}',
     b'{"images": [{"b64": "eA=="}], "top_k": "1"}', b'{"images": [{"b64": "eA=="}], "top_k": true}',
     b'{"images": [{"b64": "eA=="}], "top_k": 1' + b"0" * 5000 + b"}", b"[" * 30_000],
    ids=lambda body: body[:30].decode("latin-1"),
)  # fmt: skip
def test_json_that_is_not_as_it_should_be_is_400(body):
    response = post(body, content_type="application/json")

    assert response.status == 400
    assert list(response.json) == ["error"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=xYz", b""),
        ("multipart/form-data; boundary=xYz", b"--xYz"),
        ("multipart/form-data; boundary=xYz", b"--xYz\r\n\r\n"),
        ("multipart/form-data; boundary=xYz", b"--xYz--\r\n"),
        ("multipart/form-data; boundary=xYz", b"--xYz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xYz--"),
        ("multipart/form-data; boundary=xYz", b'--xYz\r\nContent-Disposition: form-data; name="image"\r\n\r\nx'),
        ("multipart/form-data; boundary=xYz", form(("file", JPEG))[0]),
        ("multipart/form-data; boundary=xYz", form(("top_k", b"1"))[0]),
    ],
)
def test_a_malformed_form_is_400(kind, body):
    assert post(body, content_type=kind).status == 400


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "video/mp4", "multipart/mixed", "\xff"])
def test_another_type_is_415(kind):
    assert post(JPEG, content_type=kind).status == 415


def test_too_many_images_are_413():
    body, kind = form(*[("image", JPEG)] * 3)

    assert post(body, content_type=kind, settings={"max_images": 2}).status == 413
    assert post(in_json(*[JPEG] * 3), content_type="application/json", settings={"max_images": 2}).status == 413
