"""The images of a request's body, in whichever of four ways is easiest for the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from models.decode.headers import sniff_format
from models.errors import InputError
from serve.config import ServeConfig
from serve.http.asgi import MODEL, Rejected
from serve.http.bodies import Held, read_body
from serve.http.forms import parse_multipart
from serve.http.image_json import check_number, whole_number
from serve.http.openapi import BINARY, JSON
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Outcome

FORM = "multipart/form-data"

# A larger body is taken apart in a thread: base64 of 20 MB takes 30 ms, in which nothing else would be answered.
_INLINE_BYTES = 512 * 1024
_RAW_TYPES = (BINARY, "")
# The body, what is cut or parsed out of it, and the images that base64 stands for.
_HELD_TIMES = {FORM: 2, JSON: 3}
# What curl's --data-binary says of any file: taken at its word only where the bytes are no image.
_CURL = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request, taken apart.

    Attributes:
        images: Encoded images, or why there is none in that place.
        top_k: As the body asks; None where it does not.
        alone: Whether the request was for one image, whose error is then the request's.
        as_base64: Whether embeddings are wanted as base64 text.
        model: As the body names it; None where it does not.
    """

    images: list[bytes | InputError]
    top_k: int | None
    alone: bool
    as_base64: bool = False
    model: str | None = None


ParseJson = Callable[[bytes, int], Parsed]


def find_model(request: Request, models: Models, name: str | None) -> Engine:
    """Return the model that a request is for, and let the request in; its body is not read yet.

    Raises:
        UnknownModelError: It is not served here.
        OverloadedError, NotReadyError: As `Engine.admit` raises them.
    """
    backend = models.find(name)
    request.scope[MODEL] = backend.spec.name
    backend.admit(1)
    return backend


async def read_images(
    request: Request, config: ServeConfig, deadline: float, parse_json: ParseJson, *, allow_form: bool = True
) -> Parsed:
    """Read a request's body and take it apart; what is held afterwards is the images.

    Args:
        request: Its body is not read yet.
        config: The endpoint's limits.
        deadline: `time.monotonic()` until which it has to be there.
        parse_json: Takes JSON apart, given it and the most images.
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
            parsed = parse_json(body, config.max_images)
        elif kind == FORM and allow_form:
            parsed = _parse_form(content_type, body, config.max_images)
        elif kind.startswith("image/") or kind in _RAW_TYPES or (kind == _CURL and _is_image(body)):
            parsed = Parsed([body], None, alone=True)
        else:
            form = f", {FORM}" if allow_form else ""
            raise Rejected(415, f"Content-Type must be image/*, {BINARY}{form} or {JSON}, got {kind[:60]!r}")
        held.set(sum(len(image) for image in parsed.images if isinstance(image, bytes)))
        return parsed

    inline = _INLINE_BYTES if kind in _HELD_TIMES else config.max_request_bytes
    return await read_body(request, config.max_request_bytes, deadline, parse, inline)


async def label_images(
    backend: Engine, parsed: Parsed, deadline: float, *, top_k: int, embedding: bool = False
) -> list[Outcome]:
    """Label a request's images, and return their outcomes in order.

    Raises:
        InputError: The one image of the request cannot be labelled.
        OverloadedError, DeadlineError: As `Engine.label` raises them.
    """
    good = [image for image in parsed.images if isinstance(image, bytes)]
    found = await backend.label(good, top_k=top_k, deadline=deadline, embedding=embedding) if good else []
    labelled = iter(found)
    outcomes = [next(labelled) if isinstance(image, bytes) else image for image in parsed.images]
    if parsed.alone and isinstance(outcomes[0], InputError):
        raise outcomes[0]
    return outcomes


def choose_top_k(asked: int | None, config: ServeConfig, num_classes: int) -> int:
    """Return how many labels an image gets: as many as were asked for, else the endpoint's default.

    Raises:
        Rejected: 400, more than the model has classes, or none.
    """
    if asked is None:
        return min(config.top_k, num_classes)
    if not 1 <= asked <= num_classes:
        raise Rejected(400, f"top_k must be between 1 and {num_classes} (the classes of the model), got {asked}")
    return asked


def _is_image(body: bytes) -> bool:
    try:
        sniff_format(body)
    except InputError:
        return False
    return True


def _parse_form(content_type: str, body: bytes, max_images: int) -> Parsed:
    images: list[bytes | InputError] = []
    top_k = None
    for part in parse_multipart(content_type, body, max_parts=max_images + 8):
        if part.name == "image":
            images.append(part.content)
        elif part.name == "top_k":
            top_k = whole_number(part.content.decode("latin-1").strip())
        else:
            raise Rejected(400, f"the form's fields are image (once or more) and top_k, got {part.name[:60]!r}")
    check_number(len(images), max_images, "the form has no field named image")
    return Parsed(images, top_k, alone=len(images) == 1)
