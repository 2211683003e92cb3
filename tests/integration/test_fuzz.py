"""A short fuzz of the OpenAPI document; `python -m tests.fuzz_openapi URL` is the long one."""

from __future__ import annotations

from tests.fuzz_openapi import fuzz
from tests.page_server import running_page_server


def test_no_request_that_the_document_suggests_or_forbids_is_a_fault():
    with running_page_server() as server:
        found = fuzz(server.url, examples=100, seconds=40)

    assert found.findings == []
    assert found.requests > 150
    assert {"200", "400"} <= set(found.statuses)
    assert "POST /v1/classify" in found.operations
