"""The page's routes, called as ASGI: what a browser is told, and that nothing comes from elsewhere."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace

import jsonschema
import pytest
from PIL import Image

from models.spec import Precision
from serve.http.page import OPENAPI_PATHS, Page, PageState, build

STATE = PageState(ready=True, model="some-model", precision="int8", max_request_bytes=1000)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(lambda: STATE)


def ask(
    page: Page, path: str, method: str = "GET", headers: dict[str, str] | None = None, root_path: str = ""
) -> Answer:
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": raw}
    asyncio.run(page(scope, None, send))
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], told, b"".join(message["body"] for message in sent[1:]))


def test_the_page_is_one_document_that_names_no_other_host(page):
    html = ask(page, "/").body.decode()

    # The namespace of SVG is a name and is not fetched.
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", html)) - {"http://www.w3.org/2000/svg"}
    assert addresses == {"http://HOST:PORT/v1/classify"}
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?!data:)", html)
    assert "/*style*/" not in html
    assert "/*script*/" not in html


def test_the_policy_allows_the_pages_own_style_and_script_by_hash_and_nothing_else(page):
    answer = ask(page, "/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))

    for element, directive in (("style", "style-src"), ("script", "script-src")):
        inside = re.search(rf"<{element}>(.*?)</{element}>", answer.body.decode(), re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert " style=" not in answer.body.decode()


@pytest.mark.parametrize(
    "path", ["/", "/page/samples", "/page/samples/chelsea.jpg", "/page/state", "/page/samples/none.jpg"]
)
def test_every_answer_forbids_guessing_its_type(page, path):
    assert ask(page, path).headers["x-content-type-options"] == "nosniff"


def test_every_photograph_is_offered_with_a_small_picture_and_a_credit(page):
    samples = json.loads(ask(page, "/page/samples").body)["samples"]

    assert len(samples) == 8
    for sample in samples:
        image = Image.open(io.BytesIO(ask(page, f"/{sample['image']}").body))
        small = Image.open(io.BytesIO(ask(page, f"/{sample['thumbnail']}").body))
        assert image.format.lower() == ask(page, f"/{sample['image']}").headers["content-type"].partition("/")[2]
        assert small.size == (192, 192)
        assert sample["title"]
        assert sample["author"]
        assert "http" not in sample["author"] + sample["licence"]
    # CC BY asks for the licence's address.
    assert {s["licence_url"] for s in samples if s["licence"] == "CC BY 2.0"} == {
        "https://creativecommons.org/licenses/by/2.0/"
    }


def test_an_unchanged_page_is_not_sent_again(page):
    tag = ask(page, "/").headers["etag"]

    again = ask(page, "/", headers={"If-None-Match": f'W/"other", {tag}'})
    changed = ask(page, "/", headers={"If-None-Match": '"other"'})

    assert (again.status, again.body) == (304, b"")
    assert changed.status == 200


def test_head_has_the_headers_of_get_and_no_body(page):
    got, asked = ask(page, "/"), ask(page, "/", method="HEAD")

    assert asked.headers == got.headers
    assert asked.body == b""
    assert int(got.headers["content-length"]) == len(got.body)


@pytest.mark.parametrize(
    "path", ["/page/samples/none.jpg", "/page/samples/../LICENSES.md", "/page/samples/small/", "/page/samples/%2e%2e/x"]
)
def test_what_is_not_there_is_a_404_in_the_form_of_every_error(page, path):
    answer = ask(page, path)

    assert answer.status == 404
    assert list(json.loads(answer.body)) == ["error"]


def test_other_methods_are_refused(page):
    answer = ask(page, "/", method="POST")

    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert "POST" in json.loads(answer.body)["error"]


def test_the_state_is_asked_each_time(page):
    states = iter([STATE, PageState(ready=False, model="m", precision="fp32", max_request_bytes=1)])
    moving = Page(lambda: next(states))

    first, second = (json.loads(ask(moving, "/page/state").body) for _ in range(2))

    assert first == {"ready": True, "model": "some-model", "precision": "int8", "max_request_bytes": 1000}
    assert second["ready"] is False


def test_the_routes_lie_below_a_root_path(page):
    assert ask(page, "/app/", root_path="/app").body == ask(page, "/").body
    assert ask(page, "/app", root_path="/app").body == ask(page, "/").body


def test_the_page_of_an_endpoint_tells_what_its_backend_is():
    backend = SimpleNamespace(is_ready=False, spec=SimpleNamespace(name="resnet18-v2"), precision=Precision.FP32)

    state = json.loads(ask(build(backend, SimpleNamespace(max_request_bytes=7)), "/page/state").body)

    assert state == {"ready": False, "model": "resnet18-v2", "precision": "fp32", "max_request_bytes": 7}


def test_the_answers_are_what_the_openapi_document_says(page):
    for path, operation in OPENAPI_PATHS.items():
        ((content_type, content),) = operation["get"]["responses"]["200"]["content"].items()

        answer = ask(page, path)

        assert answer.headers["content-type"].startswith(content_type)
        if content_type == "application/json":
            jsonschema.validate(json.loads(answer.body), content["schema"])
