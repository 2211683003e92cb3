"""The OpenAPI document: it names every route, and every answer is as it says."""

from __future__ import annotations

import asyncio
import base64
import json

import jsonschema
import pytest

from serve.config import ServeConfig
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend

JPEG = b"\xff\xd8\xff" + b"\0" * 3
CONFIG = ServeConfig(model="efficientnet-lite0", max_images=7)
B64 = base64.b64encode(JPEG).decode()
IMAGES = {"images": [{"b64": B64}, {"b64": base64.b64encode(b"bad").decode()}]}
INPUTS = {"inputs": B64, "parameters": {"top_k": 2}}
INFER = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [B64]}], "id": "1"}


BACKEND = FakeBackend()
APP = build_asgi(Models(BACKEND), CONFIG)


def ask(method: str, path: str, body: object = None, *, is_ready: bool = True, **headers: str) -> Response:
    BACKEND.is_ready = is_ready
    content = b"" if body is None else json.dumps(body).encode()
    return asyncio.run(request(APP, method, path, content, **headers))


DOCUMENT = ask("GET", "/openapi.json").json
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]


def check(value: object, schema: dict[str, object]) -> None:
    """Check a value against a schema of the document, in which nothing may be that it does not name."""
    closed = json.loads(json.dumps(DOCUMENT["components"]["schemas"]))
    for each in closed.values():
        each.setdefault("additionalProperties", False)
    jsonschema.Draft202012Validator({**schema, "components": {"schemas": closed}}).validate(value)


def references(value):
    if isinstance(value, dict):
        yield from (inner for key, inner in value.items() if key == "$ref")
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_document_describes_how_images_are_sent_and_resolves():
    operation = DOCUMENT["paths"]["/v1/classify"]["post"]

    assert set(operation["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert set(operation["responses"]) == {"200", "400", "401", "404", "405", "413", "415", "422", "503", "504"}
    for reference in references(DOCUMENT):
        target = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_the_document_has_the_endpoints_own_limits():
    schemas = DOCUMENT["components"]["schemas"]

    assert schemas["ClassifyRequest"]["properties"]["images"]["maxItems"] == 7
    assert schemas["ClassifyForm"]["properties"]["top_k"]["maximum"] == len(FakeBackend().labels)


@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize("model", ["efficientnet-lite0", "efficientnet-lite0-tensor", "nothing"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_as_the_document_says(path, method, model, is_ready):
    bodies = {
        "/v1/classify": IMAGES,
        "/v1/embeddings": IMAGES,
        "/models/{model}": INPUTS,
        "/v2/models/{model}/infer": INFER,
    }
    body = bodies.get(path.replace("/versions/{version}", ""))

    got = ask(
        method.upper(),
        path.format(model=model, version="1"),
        body,
        is_ready=is_ready,
        content_type="application/json",
    )

    if got.status == 404 and path == "/metrics":
        return  # this endpoint was built without
    response = DOCUMENT["paths"][path][method]["responses"][str(got.status)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    content_type = got.headers["content-type"].partition(";")[0]
    assert content_type in response["content"]
    if content_type == "application/json":
        check(got.json, response["content"][content_type]["schema"])
    assert (got.status == 200) == ("nothing" not in (model if "{model}" in path else "")) or got.status in (
        400,
        404,
        503,
    )


def test_the_requests_of_these_tests_are_as_the_document_says():
    check(IMAGES, {"$ref": "#/components/schemas/ClassifyRequest"})
    check(INFER, {"$ref": "#/components/schemas/InferRequest"})
    check(INPUTS, {"$ref": "#/components/schemas/ImageClassificationRequest"})
    check(IMAGES, DOCUMENT["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"])


def test_a_request_that_the_document_forbids_is_refused():
    for wrong in ({}, {"images": []}, {"images": [{"url": "http://x"}]}, {**IMAGES, "top_k": 0}, {**IMAGES, "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check(wrong, {"$ref": "#/components/schemas/ClassifyRequest"})
        assert ask("POST", "/v1/classify", wrong, content_type="application/json").status == 400
