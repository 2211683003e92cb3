"""`GET /`, `/page/state`, and below `/page/samples/` the bundled photographs, from memory.

The page is one document with its style and script inside, and a Content-Security-Policy that allows these two by their
hashes and nothing else: no outside asset, no inline handler, no frame around it.
"""

from __future__ import annotations

import base64
import hashlib
import tarfile
from importlib.resources import files
from mimetypes import guess_type

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse

from serve.http.asgi import JsonResponse
from serve.model.models import Models

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def page_routes(models: Models, max_request_bytes: int) -> list[Route]:
    """Read the page and the photographs once, and return the routes; the models are asked at every `/page/state`."""
    document = _document()

    async def page(request: Request) -> Response:
        is_known = document.headers["ETag"] in request.headers.get("if-none-match", "")
        return NotModifiedResponse(document.headers) if is_known else document

    async def state(_: Request) -> Response:
        served = [
            {"name": each.spec.name, "precision": str(each.precision), "ready": each.is_ready}
            for each in map(models.find, models.names)
        ]
        state = {"ready": models.is_ready, "models": served, "max_request_bytes": max_request_bytes}
        return JsonResponse(state, headers={"Cache-Control": "no-store", **SECURITY_HEADERS})

    return [Route("/", page), Route("/page/state", state), *_photographs()]


def _document() -> Response:
    """Put the page together: its style and script go inside, and their hashes into the policy."""
    folder = files("serve.http.page")
    style, script, html = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js", "index.html"))
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        f"default-src 'none'; script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(style)}'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}
    return Response(html, headers={**headers, "ETag": f'"{_digest(html)}"', **SECURITY_HEADERS}, media_type="text/html")


def _digest(text: str) -> str:
    """Return a SHA-256 in the form that a Content-Security-Policy takes."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _photographs() -> list[Route]:
    """Return a route for each photograph of `models/samples/photos.tar`; its other members are their classes."""
    headers = {"Cache-Control": "public, max-age=3600", **SECURITY_HEADERS}
    routes = []
    with files("models").joinpath("samples", "photos.tar").open("rb") as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            kind, stream = guess_type(member.name, strict=False)[0], tar.extractfile(member)
            if kind is not None and kind.startswith("image/") and stream is not None:
                photograph = Response(stream.read(), headers=headers, media_type=kind)
                routes.append(Route(f"/page/samples/{member.name}", photograph, methods=["GET"]))
    return routes
