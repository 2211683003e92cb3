"""What the routes that take images have in common: a request is let in, taken apart, labelled and answered.

A body is an image as it is, a form, or JSON: whichever is easiest for the caller.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from multipart import MultipartError, MultipartParser, parse_options_header
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from models.decode.headers import sniff_format
from models.errors import InputError, UndecodableImageError
from serve.config import ServeConfig
from serve.http.asgi import IN_FLIGHT, TIMEOUT, JsonResponse, Rejected, deadline_of, whole_number
from serve.http.bodies import Held, from_base64, invalid, load_json, read_body
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Outcome

T = TypeVar("T")
FORM = "multipart/form-data"

# A larger body is parsed in a thread: base64 of 20 MB takes 30 ms, in which nothing else would be answered.
_INLINE_BYTES = 512 * 1024
# The body, what is cut or parsed out of it, and the images that are copied or decoded from that.
_HELD_TIMES = {FORM: 3, JSON: 3}
# The type that curl's --data-binary gives any file: ignored where the bytes are an image.
_CURL = "application/x-www-form-urlencoded"
# JSON has six marks per image ({"b64":"data:image/jpeg;base64,..."},), and a few around them.
_JSON_VALUES_AN_IMAGE = 8
_JSON_VALUES_BESIDE = 64

_ERRORS = (400, 404, 405, 413, 415, 422, 503, 504)

# An encoded image, or why there is none in its place.
Image = bytes | InputError


def _file(text: object) -> Image:
    """Decode base64 or a `data:` URL; broken base64 is that image's own error."""
    if not isinstance(text, str) or text.startswith(("http://", "https://")):
        raise ValueError("expected an image file in base64; text has no labels, and nothing is fetched from addresses")
    try:
        return from_base64(text.partition(",")[2] if text.startswith("data:") else text)
    except (ValueError, UnicodeEncodeError) as err:
        return UndecodableImageError(f"is not base64: {str(err)[:80]}")


Base64 = Annotated[str, Field(description="The file in base64.", json_schema_extra={"contentEncoding": "base64"})]
File = Annotated[Image, PlainValidator(_file, json_schema_input_type=Base64)]
Status = Annotated[str, Field(json_schema_extra={"enum": ["ok", "undecodable", "too_large", "unsupported", "empty"]})]
Score = Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]
ModelQuery = Annotated[str, Field(description="The model's name, where there are several; the first unless given.")]
# Of bodies: a field that is not declared is an error.
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed request.

    Attributes:
        images: One or more.
        top_k: As the body asks; None where it does not.
        encoding: Of embeddings.
        model: As the body names it; None where it does not.
    """

    images: Sequence[Image]
    top_k: int | None = None
    encoding: Literal["float", "base64"] = "float"
    model: str | None = None


class JsonBody(BaseModel):
    """JSON with images, of one of the routes."""

    model_config = STRICT

    def parsed(self) -> Parsed:
        """Return the parsed request."""
        raise NotImplementedError


class EncodedImage(BaseModel):
    """An image file."""

    model_config = STRICT

    b64: File


def several(kind: Any, config: ServeConfig) -> Any:  # noqa: ANN401 (types)
    """Return the type of a list with as many elements as a request may have images."""
    return Annotated[list[kind], Field(min_length=1, max_length=config.max_images)]


class ImageRoute(Operation):
    """A route that takes images. The model is named by its path, the query, or JSON that has a field for it.

    Args:
        path: Of the route.
        about: What the document says of it, beside what all of these routes share. Its body has what JSON has to be, a
            `JsonBody`, and a form where one is taken.
        models: What is served.
        config: Limits and defaults.
    """

    gives_embeddings: ClassVar[bool] = False

    def __init__(self, path: str, about: About, models: Models, config: ServeConfig) -> None:
        body = {"image/*": bytes, BINARY: bytes, **about.body}
        super().__init__("POST", path, self._answer, replace(about, errors=_ERRORS, body=body, headers=TIMEOUT))
        self._json_kind: type[JsonBody] = about.body[JSON]
        self._body_names_model = "model" in self._json_kind.model_fields
        self._allow_form = FORM in about.body
        self._models = models
        self._config = config

    def render(self, backend: Engine, outcomes: list[Outcome], parsed: Parsed) -> Any:  # noqa: ANN401 (JSON)
        """Return the answer to a request; `outcomes` are those of its images, in order."""
        raise NotImplementedError

    def check(self, backend: Engine, top_k: int | None) -> None:
        """Raise `Rejected` where the model cannot do what is asked for."""

    async def _answer(self, request: Request) -> Response:
        config = self._config
        deadline = deadline_of(request, config.deadline_s)
        named = request.path_params.get("model", request.query_params.get("model"))
        backend = None
        if named is None and self._body_names_model:
            self._models.admit(1)
        else:
            backend = self._admitted(request, named)
        asked = request.query_params.get("top_k")
        top_k = None if asked is None else to_top_k(asked)
        parsed = await self._read(request, deadline)
        top_k = _only("top_k", top_k, parsed.top_k)
        name = _only("model", named, parsed.model)
        if backend is None:
            backend = self._admitted(request, name)
        self.check(backend, top_k)
        good = [image for image in parsed.images if isinstance(image, bytes)]
        top_k = _chosen(top_k, config.top_k, len(backend.labels))
        labelled = iter(
            await backend.label(good, top_k=top_k, deadline=deadline, embedding=self.gives_embeddings) if good else ()
        )
        outcomes = [next(labelled) if isinstance(image, bytes) else image for image in parsed.images]
        if len(outcomes) == 1 and isinstance(outcomes[0], InputError):
            raise outcomes[0]
        return JsonResponse(self.render(backend, outcomes, parsed))

    def _admitted(self, request: Request, name: str | None) -> Engine:
        """Return the model that a request is for, and let the request in; or raise why not."""
        backend = self._models.find(name)
        request.scope[IN_FLIGHT].model = backend.spec.name
        backend.admit(1)
        return backend

    async def _read(self, request: Request, deadline: float) -> Parsed:
        """Read and parse a request's body; the images are what it holds afterwards."""
        max_images, max_bytes = self._config.max_images, self._config.max_request_bytes
        content_type = request.headers.get("content-type", "")
        kind = content_type.split(";", 1)[0].strip().lower()
        held: Held = request.scope[IN_FLIGHT].held

        def parse(body: bytes) -> Parsed:
            held.set(_HELD_TIMES.get(kind, 1) * len(body))
            if kind == JSON:
                parsed = _parse_json(body, max_images, self._json_kind)
            elif kind == FORM and self._allow_form:
                parsed = _parse_form(content_type, body, max_images)
            elif kind.startswith("image/") or kind in (BINARY, "") or (kind == _CURL and _is_image(body)):
                parsed = Parsed([body])
            else:
                form = f", {FORM}" if self._allow_form else ""
                raise Rejected(415, f"Content-Type must be image/*, {BINARY}{form} or {JSON}, got {kind[:60]!r}")
            held.set(sum(len(image) for image in parsed.images if isinstance(image, bytes)))
            return parsed

        return await read_body(request, max_bytes, deadline, parse, _INLINE_BYTES if kind in _HELD_TIMES else max_bytes)


def _only(what: str, outside: T | None, inside: T | None) -> T | None:
    if outside is not None and inside is not None and outside != inside:
        raise Rejected(400, f"{what} is given twice: {str(outside)[:60]} in the query, {str(inside)[:60]} in the body")
    return inside if outside is None else outside


def _chosen(asked: int | None, default: int, num_classes: int) -> int:
    if asked is None:
        return min(default, num_classes)
    if not 1 <= asked <= num_classes:
        raise Rejected(400, f"top_k must be between 1 and {num_classes} (the classes of the model), got {asked}")
    return asked


def to_top_k(text: str) -> int:
    """Read a top_k that came as text, or raise `Rejected`."""
    top_k = whole_number(text)
    if top_k is None:
        raise Rejected(400, f"top_k must be a whole number, got {text[:40]!r}")
    return top_k


def _is_image(body: bytes) -> bool:
    try:
        sniff_format(body)
    except InputError:
        return False
    return True


def _parse_json(body: bytes, max_images: int, kind: type[JsonBody]) -> Parsed:
    document = load_json(body, _JSON_VALUES_AN_IMAGE * max_images + _JSON_VALUES_BESIDE)
    try:
        parsed = kind.model_validate(document).parsed()
    except ValidationError as err:
        raise _too_many(max_images) if err.errors()[0]["type"] == "too_long" else invalid(err) from None
    if len(parsed.images) == 1 and isinstance(parsed.images[0], InputError):
        raise Rejected(400, f"the image {parsed.images[0]}")
    return parsed


def _too_many(max_images: int) -> Rejected:
    return Rejected(413, f"the request has more images than max_images, {max_images}", kind="too_many_images")


def _parse_form(content_type: str, body: bytes, max_images: int) -> Parsed:
    boundary = parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise Rejected(400, "multipart/form-data needs a boundary in its Content-Type")
    limits = {"header_limit": 16, "headersize_limit": 8192, "part_limit": max_images + 2}
    parts = MultipartParser(io.BytesIO(body), boundary, **limits, spool_limit=len(body), memory_limit=len(body))
    fields: dict[str, list[bytes]] = {}
    try:
        for part in parts:
            fields.setdefault(part.name, []).append(part.raw)
    except MultipartError as err:
        raise Rejected(400, f"the form is malformed: {str(err)[:200]}") from err
    images, top_k = fields.get("image", []), fields.get("top_k", [])
    if not images or len(top_k) > 1 or fields.keys() - {"image", "top_k"}:
        got = ", ".join(f"{name[:60]!r} ({len(raw)})" for name, raw in fields.items()) or "none"
        raise Rejected(400, f"the form must have one or more fields image and at most one top_k, got {got}")
    if len(images) > max_images:
        raise _too_many(max_images)
    return Parsed(images, to_top_k(top_k[0].decode("latin-1").strip()) if top_k else None)
