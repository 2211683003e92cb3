"""Images out of a request's body, which is an image as it is, a form, or JSON: whichever is easiest for the caller."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from multipart import MultipartError, MultipartParser
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from models.decode.headers import sniff_format
from models.errors import InputError, UndecodableImageError
from serve.http.asgi import Rejected, whole_number
from serve.http.bodies import from_base64, load_json, validated
from serve.http.openapi import BINARY, JSON, Content

FORM = "multipart/form-data"
# The type that curl gives any file: ignored where the bytes are an image, as --data-binary sends it.
_CURL = "application/x-www-form-urlencoded"
_CURL_HINT = (
    "; with curl, use --data-binary @FILE and -H 'Content-Type: image/jpeg', or the type that the file has: "
    "-d takes bytes out of it"
)
# JSON has six marks per image ({"b64":"data:image/jpeg;base64,..."},), and a few around them.
_JSON_VALUES_AN_IMAGE = 8
_JSON_VALUES_BESIDE = 64

Image = bytes | InputError  # an encoded image, or why there is none in its place


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


class Parsed(NamedTuple):
    """A parsed request; what is None its body does not say."""

    images: Sequence[Image]  # one or more
    top_k: int | None = None
    encoding: Literal["float", "base64"] = "float"  # of embeddings
    model: str | None = None


class Strict(BaseModel):
    """A body or a part of one, in which a field that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EncodedImage(Strict):
    """An image file."""

    b64: File


def parse_images(body: bytes, kind: str, options: Mapping[str, str], taken: Content, max_images: int) -> Parsed:
    """Parse a body by its type.

    Args:
        body: Unpacked.
        kind: Its Content-Type; "" where there is none.
        options: What the Content-Type has beside.
        taken: What the route takes beside an image: as `JSON` a model with a method `parsed`, which returns `Parsed`; as
            `FORM`, if at all, a model of its fields.
        max_images: Limit on their number.

    Raises:
        Rejected: 415, another type; 400, malformed; 413, too many images, or values of JSON.
    """
    if kind == JSON:
        document = load_json(body, _JSON_VALUES_AN_IMAGE * max_images + _JSON_VALUES_BESIDE)
        parsed: Parsed = validated(taken[JSON], document).parsed()
        if len(parsed.images) == 1 and isinstance(parsed.images[0], InputError):
            raise Rejected(400, f"the image {parsed.images[0]}")
    elif kind == FORM and FORM in taken:
        parsed = _parse_form(body, options.get("boundary", ""), taken[FORM].model_fields.keys(), max_images)
    elif kind.startswith("image/") or kind in (BINARY, "") or (kind == _CURL and _is_image(body)):
        parsed = Parsed([body])
    else:
        form = f", {FORM}" if FORM in taken else ""
        hint = _CURL_HINT if kind == _CURL else ""
        raise Rejected(415, f"Content-Type must be image/*, {BINARY}{form} or {JSON}, got {kind[:60]!r}{hint}")
    if len(parsed.images) > max_images:
        raise Rejected(413, f"the request has more images than max_images, {max_images}", kind="too_many_images")
    return parsed


def _is_image(body: bytes) -> bool:
    """Tell whether a body begins as an image does, and is as it was: curl -d takes zero bytes out, which every image has."""
    try:
        sniff_format(body)
    except InputError:
        return False
    return b"\0" in body


def _parse_form(body: bytes, boundary: str, known: Iterable[str], max_images: int) -> Parsed:
    if not boundary:
        raise Rejected(400, f"{FORM} needs a boundary in its Content-Type")
    limits = {"header_limit": 16, "headersize_limit": 8192, "part_limit": max_images + 2}
    parts = MultipartParser(io.BytesIO(body), boundary, **limits, spool_limit=len(body), memory_limit=len(body))
    fields: dict[str, list[bytes]] = {}
    try:
        for part in parts:
            fields.setdefault(part.name, []).append(part.raw)
    except MultipartError as err:
        raise Rejected(400, f"the form is malformed: {str(err)[:200]}") from err
    images, top_k = fields.get("image", []), fields.get("top_k", [])
    if not images or len(top_k) > 1 or fields.keys() - known:
        got = ", ".join(f"{name[:60]!r} ({len(raw)})" for name, raw in fields.items()) or "none"
        most = " and at most one top_k" if "top_k" in known else ""
        raise Rejected(400, f"the form must have one or more fields image{most}, got {got}")
    return Parsed(images, to_top_k(top_k[0].decode("latin-1").strip()) if top_k else None)


def to_top_k(text: str) -> int:
    """Read a top_k that came as text, or raise `Rejected`."""
    top_k = whole_number(text)
    if top_k is None:
        raise Rejected(400, f"top_k must be a whole number, got {text[:40]!r}")
    return top_k
