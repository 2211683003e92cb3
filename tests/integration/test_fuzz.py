"""A short fuzz of the OpenAPI document; `python -m tests.support.fuzz_openapi URL` is the long one."""

from __future__ import annotations

import pytest
import requests

from tests.support.fuzz_openapi import Fuzz, fuzz
from tests.support.page_server import running_page_server


def test_no_request_that_the_document_suggests_or_forbids_is_a_fault():
    with running_page_server() as server:
        found = fuzz(server.url, examples=4, seconds=120)

    assert found.findings == []
    assert found.requests > 70
    assert {"200", "400"} <= set(found.statuses)
    assert {"POST /v1/classify", "POST /v1/embeddings", "GET /v2"} <= set(found.operations)


@pytest.mark.parametrize(
    ("status", "body", "is_found"),
    [
        pytest.param(200, b"{}", False, id="ok"),
        pytest.param(422, b'{"error": "no image"}', False, id="error"),
        pytest.param(503, b'{"error": "full"}', False, id="overloaded"),
        pytest.param(500, b'{"error": "internal error"}', True, id="fault"),
        pytest.param(502, b'{"error": "bad gateway"}', True, id="gateway"),
        pytest.param(404, b'{"detail": "Not Found"}', True, id="error of another form"),
        pytest.param(400, b"Bad Request", True, id="error that is no JSON"),
        pytest.param(400, b'{"error": "Traceback (most recent call last)"}', True, id="traceback"),
        pytest.param(400, b'{"error": "cannot read /home/me/model.onnx"}', True, id="path"),
    ],
)
def test_an_answer_that_should_not_be_is_found(status, body, is_found):
    response = requests.Response()
    response.status_code, response._content = status, body
    response.request = requests.Request("POST", "http://h/v1/classify", data=b"x").prepare()
    found = Fuzz()

    found.note("POST /v1/classify", response)

    assert bool(found.findings) is is_found
    assert found.statuses == {str(status): 1}
