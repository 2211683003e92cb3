"""POST /v1/classify: images in, labels out, in whichever of four ways is easiest for the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from models.decode.headers import sniff_format
from models.errors import InputError, UndecodableImageError
from serve.config import ServeConfig
from serve.http.answers import ClassifyAnswer, Label, Result, TimeoutSeconds, classify_bodies
from serve.http.asgi import TIMEOUT_HEADER, JsonResponse, Rejected, deadline_of
from serve.http.bodies import Held, from_base64, load_json, read_body
from serve.http.forms import parse_multipart
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.backend import Backend, Outcome

# A larger body is taken apart in a thread: base64 of 20 MB takes 30 ms, in which nothing else would be answered.
_INLINE_BYTES = 512 * 1024
# JSON has six marks an image ({"b64":"data:image/jpeg;base64,..."},), and a few around them.
_JSON_VALUES_AN_IMAGE = 8
_JSON_VALUES_BESIDE = 64

_RAW_TYPES = (BINARY, "")
_FORM = "multipart/form-data"
# The body, what is cut or parsed out of it, and the images that base64 stands for.
_HELD_TIMES = {_FORM: 2, JSON: 3}
# What curl's --data-binary says of any file: taken at its word only where the bytes are no image.
_CURL = "application/x-www-form-urlencoded"


_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON with base64. Of several images, one that "
    "cannot be labelled is a result with its status and error; alone, it is the answer's status. Limits: {bytes:,} bytes, "
    "{images} images of {pixels:,} pixels, {seconds:g} s. Bodies may be packed (Content-Encoding gzip or deflate)."
)


def classify_route(backend: Backend, config: ServeConfig) -> Operation:
    """Return the route, described with this endpoint's limits."""
    num_classes = len(backend.labels)
    most = Field(min(config.top_k, num_classes), ge=1, le=num_classes, description="Labels per image, best first.")
    in_json, in_form = classify_bodies(config.max_images, (int, most))
    about = About(
        "Label images",
        {JSON: ClassifyAnswer},
        errors=(400, 405, 413, 415, 422, 503, 504),
        text=_TEXT.format(
            bytes=config.max_request_bytes,
            images=config.max_images,
            pixels=config.max_pixels,
            seconds=config.deadline_s,
        ),
        body={"image/*": bytes, BINARY: bytes, _FORM: in_form, JSON: in_json},
        query={"top_k": Annotated[int, most]},
        headers={TIMEOUT_HEADER: TimeoutSeconds},
    )
    return Operation("POST", "/v1/classify", Classify(backend, config).answer, about)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request, taken apart.

    Attributes:
        images: Encoded images, or why there is none in that place.
        top_k: As the body asks; None where it does not.
        alone: Whether the request was for one image, whose error is then the request's.
    """

    images: list[bytes | InputError]
    top_k: int | None
    alone: bool


class Classify:
    """The route, as a function of a request to its answer.

    Args:
        backend: The model.
        config: Limits and defaults.
    """

    def __init__(self, backend: Backend, config: ServeConfig) -> None:
        self._backend = backend
        self._config = config
        self._num_classes = len(backend.labels)
        self._labels = backend.labels

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            Rejected: The request is at fault.
            RequestError: Overloaded, or too late.
            InputError: The one image of the request cannot be labelled.
        """
        deadline = deadline_of(request, self._config.deadline_s)
        asked_k = request.query_params.get("top_k")
        query_k = None if asked_k is None else _whole_number(asked_k)
        parsed = await self._read(request, deadline)
        top_k = self._top_k(query_k, parsed.top_k)
        outcomes = await self._label(parsed.images, top_k, deadline)
        if parsed.alone and isinstance(outcomes[0], InputError):
            raise outcomes[0]
        spec, results = self._backend.spec, [self._result(outcome) for outcome in outcomes]
        return JsonResponse(ClassifyAnswer(model=spec.name, model_version=spec.version, results=results))

    async def _read(self, request: Request, deadline: float) -> Parsed:
        """Read the body and take it apart; what is held afterwards is the images."""
        content_type = request.headers.get("content-type", "")
        kind = content_type.split(";", 1)[0].strip().lower()
        held: Held = request.scope[Held.KEY]

        def parse(body: bytes) -> Parsed:
            held.set(_HELD_TIMES.get(kind, 1) * len(body))
            parsed = _parse(kind, content_type, body, self._config.max_images)
            held.set(sum(len(image) for image in parsed.images if isinstance(image, bytes)))
            return parsed

        max_bytes = self._config.max_request_bytes
        inline = _INLINE_BYTES if kind in _HELD_TIMES else max_bytes
        return await read_body(request, max_bytes, deadline, parse, inline)

    def _top_k(self, query: int | None, body: int | None) -> int:
        if query is not None and body is not None and query != body:
            raise Rejected(400, f"top_k is given twice: {query} in the query and {body} in the body")
        top_k = query if query is not None else body
        if top_k is None:
            return min(self._config.top_k, self._num_classes)
        if not 1 <= top_k <= self._num_classes:
            raise Rejected(
                400, f"top_k must be between 1 and {self._num_classes} (the classes of the model), got {top_k}"
            )
        return top_k

    async def _label(self, images: Sequence[bytes | InputError], top_k: int, deadline: float) -> list[Outcome]:
        good = [image for image in images if isinstance(image, bytes)]
        labelled = iter(await self._backend.label(good, top_k=top_k, deadline=deadline) if good else ())
        return [next(labelled) if isinstance(image, bytes) else image for image in images]

    def _result(self, outcome: Outcome) -> Result:
        if isinstance(outcome, InputError):
            result: Result = {"status": outcome.status, "error": str(outcome)}
            if outcome.width is not None and outcome.height is not None:
                result |= {"width": outcome.width, "height": outcome.height}
            return result
        labels: list[Label] = [
            {"label": self._labels[i], "label_id": i, "score": score}
            for i, score in zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
        ]
        result = {"status": "ok", "width": outcome.width, "height": outcome.height, "labels": labels}
        if outcome.accepted is not None:
            result["accepted"] = outcome.accepted
        return result


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Rejected(400, f"top_k must be a whole number, got {text[:40]!r}")
    return int(text)


def _parse(kind: str, content_type: str, body: bytes, max_images: int) -> Parsed:
    """Take a request's body apart by its type."""
    if kind.startswith("image/") or kind in _RAW_TYPES:
        return Parsed([body], None, alone=True)
    if kind == _FORM:
        return _parse_form(content_type, body, max_images)
    if kind == JSON:
        return _parse_json(body, max_images)
    if kind == _CURL and _is_image(body):
        return Parsed([body], None, alone=True)
    raise Rejected(
        415,
        "Content-Type must be image/*, application/octet-stream, multipart/form-data or application/json, "
        f"got {kind[:60]!r}",
    )


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
            top_k = _whole_number(part.content.decode("latin-1").strip())
        else:
            raise Rejected(400, f"the form's fields are image (once or more) and top_k, got {part.name[:60]!r}")
    _check_number(len(images), max_images, "the form has no field named image")
    return Parsed(images, top_k, alone=len(images) == 1)


def _parse_json(body: bytes, max_images: int) -> Parsed:
    request = load_json(body, _JSON_VALUES_AN_IMAGE * max_images + _JSON_VALUES_BESIDE)
    if not isinstance(request, dict):
        raise Rejected(400, f'the body must be {{"images": [{{"b64": "..."}}]}}, got {_kind(request)}')
    if unknown := next((name for name in request if name not in ("images", "top_k")), None):
        raise Rejected(400, f"the keys are images and top_k, got {unknown[:60]!r}")
    items = request.get("images")
    if not isinstance(items, list):
        raise Rejected(400, f"images must be a list, got {_kind(items)}")
    _check_number(len(items), max_images, "images is empty")
    top_k = request.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool)):
        raise Rejected(400, f"top_k must be a whole number, got {_kind(top_k)}")
    images = [_from_base64(item, index) for index, item in enumerate(items)]
    if len(images) == 1 and isinstance(images[0], InputError):
        raise Rejected(400, f"images[0]: {images[0]}")
    return Parsed(images, top_k, alone=len(images) == 1)


def _from_base64(item: object, index: int) -> bytes | InputError:
    """Return one image's bytes; broken base64 is that image's own error."""
    if not isinstance(item, dict) or set(item) != {"b64"} or not isinstance(item["b64"], str):
        raise Rejected(
            400, f'images[{index}] must be {{"b64": "<the file in base64>"}}; nothing is fetched from addresses'
        )
    text = item["b64"]
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return from_base64(text)
    except (ValueError, UnicodeEncodeError) as err:
        return UndecodableImageError(f"b64 is not base64: {str(err)[:80]}")


def _check_number(got: int, max_images: int, nothing: str) -> None:
    if got == 0:
        raise Rejected(400, f"{nothing}; expected at least one image")
    if got > max_images:
        raise Rejected(413, f"the request has {got} images; max_images is {max_images}", kind="too_many_images")


_KINDS: dict[type, str] = {
    type(None): "null",
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    float: "a fraction",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")
