"""`GET /`, `/page/state`, `/page/samples`, and below it the photographs, from memory, as one ASGI application.

The page is one document with its style and script inside, and a Content-Security-Policy that allows these two by their
hashes and nothing else: no outside asset, no inline handler, no frame around it. None of these routes needs a key: the
page is where a key is typed in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Protocol

from serve.http.page.samples import Photograph, read_photographs
from serve.model.backend import Backend

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# What every answer of these routes says to a browser.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
SAMPLES_MAX_AGE_S = 3600


@dataclass(frozen=True, slots=True)
class PageState:
    """What the page shows of the server, and needs to know of it.

    Attributes:
        ready: Whether a real inference has passed on every batch shape.
        model: Its name.
        precision: Of the artifact in use.
        max_request_bytes: The limit on a request's body; the page does not send what is over it.
    """

    ready: bool
    model: str
    precision: str
    max_request_bytes: int


class Limits(Protocol):
    """What the page needs of `serve.config.ServeConfig`."""

    @property
    def max_request_bytes(self) -> int:
        """The limit on a request's body."""


def build(backend: Backend, config: Limits) -> Page:
    """Return the page of an endpoint, as an ASGI application for `/` and all below `/page/`."""

    def state() -> PageState:
        return PageState(backend.is_ready, backend.spec.name, str(backend.precision), config.max_request_bytes)

    return Page(state)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Page:
    """Answer the page's routes. Reads and draws everything once; takes a tenth of a second.

    Args:
        state: Asked at every `/page/state`.
    """

    def __init__(self, state: Callable[[], PageState]) -> None:
        self._state = state
        self._fixed = {"/": _page(), **_samples(read_photographs())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request (ASGI)."""
        answer = self._answer(scope)
        headers = list(answer.headers)
        if answer.status != 304:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, scope: Scope) -> _Answer:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if scope["method"] not in {"GET", "HEAD"}:
            return _error(
                405, f"{path[:200]!r} answers GET and HEAD, got {scope['method'][:20]}", {"Allow": "GET, HEAD"}
            )
        if path == "/page/state":
            return _reply(json.dumps(asdict(self._state())).encode(), "application/json", {"Cache-Control": "no-store"})
        answer = self._fixed.get(path)
        if answer is None:
            return _error(404, f"there is nothing at {path[:200]!r}; the samples are listed at /page/samples")
        tag = dict(answer.headers)[b"etag"]
        if any(name == b"if-none-match" and tag in value for name, value in scope["headers"]):
            return _Answer(304, answer.headers, b"")
        return answer


def _page() -> _Answer:
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
    return _reply(html.encode(), "text/html; charset=utf-8", headers)


def _samples(photographs: list[Photograph]) -> dict[str, _Answer]:
    """Return the listing, the files and the small pictures by path."""
    listing = [
        {
            **{key: getattr(p, key) for key in ("name", "title", "author", "source", "licence", "licence_url")},
            "image": f"page/samples/{p.name}",
            "thumbnail": f"page/samples/small/{p.name}",
        }
        for p in photographs
    ]
    kept = {"Cache-Control": f"public, max-age={SAMPLES_MAX_AGE_S}"}
    answers = {"/page/samples": _reply(json.dumps({"samples": listing}).encode(), "application/json", kept)}
    for photograph in photographs:
        answers[f"/page/samples/{photograph.name}"] = _reply(photograph.content, photograph.media_type, kept)
        answers[f"/page/samples/small/{photograph.name}"] = _reply(photograph.thumbnail, "image/jpeg", kept)
    return answers


def _reply(body: bytes, media_type: str, extra: dict[str, str], status: int = 200) -> _Answer:
    headers = {"Content-Type": media_type, "ETag": f'"{_digest(body)}"', **SECURITY_HEADERS, **extra}
    return _Answer(status, tuple((k.lower().encode(), v.encode()) for k, v in headers.items()), body)


def _error(status: int, message: str, extra: dict[str, str] | None = None) -> _Answer:
    return _reply(
        json.dumps({"error": message}).encode(),
        "application/json",
        {"Cache-Control": "no-store"} | (extra or {}),
        status,
    )


def _digest(content: bytes) -> str:
    """Return a SHA-256 in the form that a Content-Security-Policy takes."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()
