"""`GET /`, `/page/state`, `/page/samples`, and below it the photographs, from memory.

The page is one document with its style and script inside, and a Content-Security-Policy that allows these two by their
hashes and nothing else: no outside asset, no inline handler, no frame around it. None of these routes needs a key: the
page is where a key is typed in.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse
from typing_extensions import TypedDict

from serve.http.asgi import JsonResponse, Rejected
from serve.http.openapi import JSON, About, Operation
from serve.http.page.samples import Photograph, read_photographs
from serve.model.models import Models

# What every answer of these routes says to a browser.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_AN_HOUR = {"Cache-Control": "public, max-age=3600"}


class PageModel(TypedDict):
    """A model that the page can ask."""

    name: str
    precision: str
    ready: bool


class PageState(TypedDict):
    """What the page shows of the server, and needs to know of it: it does not send what is over the limit."""

    ready: bool
    models: list[PageModel]
    max_request_bytes: int


class Sample(TypedDict):
    """One bundled photograph: whose it is, and where it and a small picture of it are."""

    name: str
    title: str
    author: str
    source: str
    licence: str
    licence_url: str
    image: str
    thumbnail: str


class Samples(TypedDict):
    """The bundled photographs."""

    samples: list[Sample]


def page_routes(models: Models, max_request_bytes: int) -> list[Route]:
    """Read and draw everything once, which takes a tenth of a second, and return the routes.

    Args:
        models: Asked at every `/page/state`.
        max_request_bytes: The limit on a request's body.
    """
    photographs = read_photographs()
    html, listing, pictures = _page(), _listing(photographs), _pictures(photographs)

    async def page(request: Request) -> Response:
        return _unless_known(request, html)

    async def state(_: Request) -> Response:
        state = PageState(
            ready=models.is_ready,
            models=[
                PageModel(name=each.spec.name, precision=str(each.precision), ready=each.is_ready)
                for each in map(models.find, models.names)
            ],
            max_request_bytes=max_request_bytes,
        )
        return JsonResponse(state, headers={"Cache-Control": "no-store", **SECURITY_HEADERS})

    async def samples(request: Request) -> Response:
        return _unless_known(request, listing)

    async def picture(request: Request) -> Response:
        path = request.scope["path"]
        found = pictures.get(path)
        if found is None:
            raise Rejected(
                404, f"there is nothing at {request.scope['path'][:200]!r}; the samples are listed at /page/samples"
            )
        return _unless_known(request, found)

    about_page = About("A page to label images on", {"text/html": str}, needs_key=False)
    about_state = About("What the page shows of this endpoint", {JSON: PageState}, needs_key=False)
    about_samples = About("The bundled photographs, and whose they are", {JSON: Samples}, needs_key=False)
    return [
        Operation("GET", "/", page, about_page),
        Operation("GET", "/page/state", state, about_state),
        Operation("GET", "/page/samples", samples, about_samples),
        Route("/page/samples/{path:path}", picture),
    ]


def _page() -> Response:
    """Put the page together: its style and script go inside, and their hashes into the policy."""
    folder = files("serve.http.page")
    parts = {
        kind: folder.joinpath(f"page.{end}").read_text("utf-8") for kind, end in (("style", "css"), ("script", "js"))
    }
    html = folder.joinpath("index.html").read_text("utf-8")
    for kind, text in parts.items():
        html = html.replace(f"/*{kind}*/", text)
    allowed = {kind: f"'sha256-{_digest(text.encode())}'" for kind, text in parts.items()}
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}
    return _kept(Response(html, headers=headers, media_type="text/html"))


def _listing(photographs: list[Photograph]) -> Response:
    samples = [
        Sample(
            name=p.name,
            title=p.title,
            author=p.author,
            source=p.source,
            licence=p.licence,
            licence_url=p.licence_url,
            image=f"page/samples/{p.name}",
            thumbnail=f"page/samples/small/{p.name}",
        )
        for p in photographs
    ]
    return _kept(JsonResponse(Samples(samples=samples), headers=_AN_HOUR))


def _pictures(photographs: list[Photograph]) -> dict[str, Response]:
    """Return the files and the small pictures by their paths."""
    pictures = {
        f"/page/samples/{p.name}": Response(p.content, headers=_AN_HOUR, media_type=p.media_type) for p in photographs
    }
    pictures |= {
        f"/page/samples/small/{p.name}": Response(p.thumbnail, headers=_AN_HOUR, media_type="image/jpeg")
        for p in photographs
    }
    return {name: _kept(response) for name, response in pictures.items()}


def _kept(response: Response) -> Response:
    """Add what every answer says, and a tag by which a browser knows it again."""
    response.headers.update({"ETag": f'"{_digest(bytes(response.body))}"', **SECURITY_HEADERS})
    return response


def _unless_known(request: Request, response: Response) -> Response:
    known = response.headers["ETag"] in request.headers.get("if-none-match", "")
    return NotModifiedResponse(response.headers) if known else response


def _digest(content: bytes) -> str:
    """Return a SHA-256 in the form that a Content-Security-Policy takes."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
