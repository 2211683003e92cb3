"""The page's routes, called as ASGI: what a browser is told, and that nothing comes from elsewhere."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
from importlib.resources import files

import pytest
from PIL import Image

from serve.http.application import Application
from serve.http.in_flight import Extras
from serve.http.page.routes import page_routes
from serve.model.models import Models
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend


def page_of(backend: FakeBackend) -> Application:
    return Application(page_routes(Models(backend), 1000), Extras())


@pytest.fixture(scope="module")
def page() -> Application:
    return page_of(FakeBackend())


def ask(page: Application, path: str, method: str = "GET", root_path: str = "", **headers: str) -> Response:
    async def below_root(scope, receive, send):
        await page({**scope, "root_path": root_path}, receive, send)

    return asyncio.run(request(below_root, method, path, **headers))


def test_the_page_is_one_document_that_names_no_other_host(page):
    html = ask(page, "/").body.decode()

    # The namespace of SVG is a name and is not fetched; links to the photographs' authors wait for a click.
    addresses = set(re.findall(r"(?<!<a href=.)https?://[^\s\"'<>)]+", html)) - {"http://www.w3.org/2000/svg"}
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


def test_every_photograph_is_offered_with_its_author_and_licence(page):
    html = ask(page, "/").body.decode()
    told = re.split(r"(?m)^## ", files("models").joinpath("samples", "LICENSES.md").read_text("utf-8"))[1:]

    assert len(told) == 8
    for section in told:
        name = section.split()[0]
        image = ask(page, f"/page/samples/{name}")
        assert f'data-sample="{name}"' in html
        assert Image.open(io.BytesIO(image.body)).format.lower() == image.headers["content-type"].partition("/")[2]
        for line in re.findall(r"(?m)^- (?:Author and source|Licence): (.*)", section):
            words, _, address = line.partition("http")
            assert re.split(r",? via |, $", words)[0] in html
            assert not address or f'href="http{address}"' in html


def test_an_unchanged_page_is_not_sent_again(page):
    tag = ask(page, "/").headers["etag"]

    again = ask(page, "/", if_none_match=f'W/"other", {tag}')
    changed = ask(page, "/", if_none_match='"other"')

    assert (again.status, again.body) == (304, b"")
    assert changed.status == 200


def test_head_has_the_headers_of_get_and_no_body(page):
    got, asked = ask(page, "/"), ask(page, "/", method="HEAD")

    assert asked.headers.keys() == got.headers.keys()
    assert asked.headers["content-length"] == got.headers["content-length"]
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


def test_the_state_is_asked_each_time():
    backend = FakeBackend()
    page = page_of(backend)

    first = ask(page, "/page/state").json
    backend.is_ready = False
    second = ask(page, "/page/state").json

    model = {"name": "efficientnet-lite0", "precision": "int8", "ready": True}
    assert first == {"ready": True, "models": [model], "max_request_bytes": 1000}
    assert second == {**first, "ready": False, "models": [{**model, "ready": False}]}


def test_the_routes_lie_below_a_root_path(page):
    assert ask(page, "/app/", root_path="/app").body == ask(page, "/").body
    assert ask(page, "/app", root_path="/app").body == ask(page, "/").body
