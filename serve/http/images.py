"""The images of a request: its body taken apart, in whichever of four forms is easiest for the caller."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from multipart import MultipartError, MultipartParser, parse_options_header
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from starlette.requests import Request

from models.decode.headers import sniff_format
from models.errors import InputError, UndecodableImageError
from serve.config import ServeConfig
from serve.http.asgi import TIMEOUT, Rejected
from serve.http.bodies import Held, from_base64, load_json, read_body
from serve.http.openapi import BINARY, JSON, About, Content

FORM = "multipart/form-data"

# A larger body is taken apart in a thread: base64 of 20 MB takes 30 ms, in which nothing else would be answered.
_INLINE_BYTES = 512 * 1024
# The body, what is cut or parsed out of it, and the images that are copied or decoded from that.
_HELD_TIMES = {FORM: 3, JSON: 3}
# What curl's --data-binary says of any file: taken at its word only where the bytes are no image.
_CURL = "application/x-www-form-urlencoded"
# JSON has six marks an image ({"b64":"data:image/jpeg;base64,..."},), and a few around them.
_JSON_VALUES_AN_IMAGE = 8
_JSON_VALUES_BESIDE = 64

# An encoded image, or why there is none in its place.
Image = bytes | InputError


def _file(text: object) -> Image:
    """Return what base64 or a `data:` address stands for; broken base64 is that image's own error."""
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
# Of bodies: nothing may be in them that they do not name.
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request, taken apart.

    Attributes:
        images: One or more.
        top_k: As the body asks; None where it does not.
        encoding: Of embeddings.
        model: As the body names it; None where it does not.
    """

    images: list[Image]
    top_k: int | None = None
    encoding: Literal["float", "base64"] = "float"
    model: str | None = None


class JsonBody(BaseModel):
    """JSON with images, of one of the routes."""

    model_config = STRICT

    def parsed(self) -> Parsed:
        """Return the request that it stands for."""
        raise NotImplementedError


class EncodedImage(BaseModel):
    """An image file."""

    model_config = STRICT

    b64: File


def several(kind: Any, config: ServeConfig) -> Any:  # noqa: ANN401 (types)
    """Return the type of a list of as many as a request may have."""
    return Annotated[list[kind], Field(min_length=1, max_length=config.max_images)]


def about_images(summary: str, answer: Any, text: str, body: Content, query: Mapping[str, Any] | None = None) -> About:  # noqa: ANN401 (a type)
    """Return what the document says of a route that takes images: as they are, or in the bodies given here."""
    errors = (400, 404, 405, 413, 415, 422, 503, 504)
    return About(summary, {JSON: answer}, errors, text, {"image/*": bytes, BINARY: bytes, **body}, query or {}, TIMEOUT)


async def read_images(
    request: Request, config: ServeConfig, deadline: float, json_kind: type[JsonBody], *, allow_form: bool = True
) -> Parsed:
    """Read a request's body and take it apart; what is held afterwards is the images.

    Args:
        request: Its body is not read yet.
        config: The endpoint's limits.
        deadline: `time.monotonic()` until which it has to be there.
        json_kind: What it is where it is JSON.
        allow_form: Whether a form is taken.

    Raises:
        Rejected: The body is not what its type says, or there are too many bytes, images or values.
        OverloadedError, DeadlineError, ClientDisconnect: As `bodies.read_body` raises them.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.split(";", 1)[0].strip().lower()
    held: Held = request.scope[Held.KEY]

    def parse(body: bytes) -> Parsed:
        held.set(_HELD_TIMES.get(kind, 1) * len(body))
        if kind == JSON:
            parsed = _parse_json(body, config.max_images, json_kind)
        elif kind == FORM and allow_form:
            parsed = _parse_form(content_type, body, config.max_images)
        elif kind.startswith("image/") or kind in (BINARY, "") or (kind == _CURL and _is_image(body)):
            parsed = Parsed([body])
        else:
            form = f", {FORM}" if allow_form else ""
            raise Rejected(415, f"Content-Type must be image/*, {BINARY}{form} or {JSON}, got {kind[:60]!r}")
        held.set(sum(len(image) for image in parsed.images if isinstance(image, bytes)))
        return parsed

    inline = _INLINE_BYTES if kind in _HELD_TIMES else config.max_request_bytes
    return await read_body(request, config.max_request_bytes, deadline, parse, inline)


def whole_number(text: str) -> int:
    """Read a top_k that came as text.

    Raises:
        Rejected: 400, it is no whole number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Rejected(400, f"top_k must be a whole number, got {text[:40]!r}")
    return int(text)


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
        raise _refusal(err) from None
    if len(parsed.images) == 1 and isinstance(parsed.images[0], InputError):
        raise Rejected(400, f"the image {parsed.images[0]}")
    return parsed


def _refusal(err: ValidationError) -> Rejected:
    first = err.errors(include_url=False)[0]
    if first["type"] == "too_long":
        return _too_many(first["ctx"]["max_length"])
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    expected = first["msg"].removeprefix("Value error, ")
    return Rejected(400, f"body{place[:100]}: {expected}, got {reprlib.repr(first['input'])}")


def _too_many(max_images: int) -> Rejected:
    return Rejected(413, f"the request has more images than max_images, {max_images}", kind="too_many_images")


def _parse_form(content_type: str, body: bytes, max_images: int) -> Parsed:
    boundary = parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise Rejected(400, "multipart/form-data needs a boundary in its Content-Type")
    size = len(body)
    parts = MultipartParser(
        io.BytesIO(body),
        boundary,
        header_limit=16,
        headersize_limit=8192,
        part_limit=max_images + 2,
        spool_limit=size,
        memory_limit=size,
    )
    images: list[Image] = []
    top_k = None
    try:
        for part in parts:
            if part.name == "image":
                images.append(part.raw)
            elif part.name == "top_k" and top_k is None:
                top_k = whole_number(part.raw.decode("latin-1").strip())
            else:
                raise Rejected(400, f"the form's fields are image (once or more) and top_k, got {part.name[:60]!r}")
            if len(images) > max_images:
                raise _too_many(max_images)
    except MultipartError as err:
        raise Rejected(400, f"the form is malformed: {str(err)[:200]}") from err
    if not images:
        raise Rejected(400, "the form has no field named image; expected at least one")
    return Parsed(images, top_k)
