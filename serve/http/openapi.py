"""Routes that say what they are, and the OpenAPI document and its page, which are made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

import orjson
from jinja2 import Environment
from pydantic import Field, TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from serve.http.asgi import JsonResponse

Json = dict[str, Any]
Content = Mapping[str, Any]  # types of a body, by its content type

JSON = "application/json"
BINARY = "application/octet-stream"
ERRORS = {
    400: "malformed: the message says what was expected",
    401: "no key, or one that is not known",
    404: "no such route or model",
    405: "another method; the header Allow lists those there are",
    413: "too many bytes, images or pixels",
    415: "not an image type, or an encoding that is not read here",
    422: "the image cannot be decoded",
    503: "overloaded or not ready; the header Retry-After says when to try again",
    504: "the deadline passed first",
}


class Error(TypedDict):
    """Why a request is refused, or has failed."""

    error: str


_Segment = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class About:
    """What the document says of a route."""

    summary: str  # in a line
    answer: Content  # what status 200 has
    errors: tuple[int, ...] = ()  # the other statuses; 401 is added where a key is asked for
    text: str = ""  # more than the line
    body: Content = field(default_factory=dict)  # what the request has
    query: Mapping[str, Any] = field(default_factory=dict)  # types of parameters, by name
    headers: Mapping[str, Any] = field(default_factory=dict)  # types of headers, by name
    needs_body: bool = True  # whether there has to be a body
    needs_key: bool = True  # whether a key is asked for, where the endpoint has any


class Operation(Route):
    """A route of one method, with what the document says of it."""

    def __init__(
        self, method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]], about: About
    ) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        super().__init__(path, endpoint, methods=[method])
        # In place of Starlette's wrapper, which has exception handlers of its own, and takes 5 microseconds.
        self.app = answer
        self.method = method
        self.about = about


def documented(routes: Sequence[Route], info: Json, *, has_keys: bool) -> list[Route]:
    """Return the routes and two more, /openapi.json and /docs, which describe those that are operations.

    The document is OpenAPI 3.1; its schemas are pydantic's, of the types that the routes name.

    Args:
        routes: The others.
        info: The document's head: title, version, description.
        has_keys: Whether the endpoint asks for keys.
    """
    schemas = _Schemas()
    paths: dict[str, Json] = {}
    for route in routes:
        if isinstance(route, Operation):
            paths.setdefault(route.path_format, {})[route.method.lower()] = _operation(route, schemas)
    error = schemas.content({JSON: Error})
    responses: Json = {f"E{status}": {"description": text, "content": error} for status, text in ERRORS.items()}
    responses["E503"]["headers"] = {"Retry-After": {"schema": schemas.of(int), "description": "Seconds."}}
    document: Json = {"openapi": "3.1.0", "info": info, "paths": paths}
    document["components"] = {"schemas": schemas.components, "responses": responses}
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return [
        *routes,
        Route("/openapi.json", JsonResponse(document), methods=["GET"]),
        Route("/docs", HTMLResponse(_page(document)), methods=["GET"]),
    ]


def _page(document: Json) -> str:
    """Return the document as a page, which needs no script and nothing from outside."""
    environment = Environment(autoescape=True)
    environment.filters["indented"] = lambda part: orjson.dumps(part, option=orjson.OPT_INDENT_2).decode()
    return environment.from_string(files("serve.http.page").joinpath("docs.html").read_text("utf-8")).render(document)


def _operation(route: Operation, schemas: _Schemas) -> Json:
    about = route.about
    statuses = sorted({*about.errors, 401} if about.needs_key else about.errors)
    operation: Json = {
        "summary": about.summary,
        "description": about.text,
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": schemas.of(kind)}
            for place, kinds in (
                ("path", dict.fromkeys(route.param_convertors, _Segment)),
                ("query", about.query),
                ("header", about.headers),
            )
            for name, kind in kinds.items()
        ],
        "responses": {
            "200": {"description": "ok", "content": schemas.content(about.answer)},
            **{str(status): {"$ref": f"#/components/responses/E{status}"} for status in statuses},
        },
    }
    if about.body:
        content = schemas.content(about.body, "validation")
        operation["requestBody"] = {"required": about.needs_body, "content": content}
    if not about.needs_key:
        operation["security"] = []
    return operation


class _Schemas:
    """JSON schemas of types; those with a name are gathered in `components`."""

    def __init__(self) -> None:
        self.components: Json = {}

    def of(self, kind: Any, mode: JsonSchemaMode = "serialization") -> Json:  # noqa: ANN401 (a type)
        found, named = TypeAdapter.json_schemas(
            [("", mode, TypeAdapter(kind))], ref_template="#/components/schemas/{model}"
        )
        self.components |= named.get("$defs", {})
        return found["", mode]

    def content(self, content: Content, mode: JsonSchemaMode = "serialization") -> Json:
        return {media: {"schema": self.of(kind, mode)} for media, kind in content.items()}
