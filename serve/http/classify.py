"""POST /v1/classify: images in, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from models.errors import InputError
from serve.config import ServeConfig
from serve.http.answers import ClassifyAnswer, Label, ModelQuery, Result, TimeoutSeconds, classify_bodies
from serve.http.asgi import TIMEOUT_HEADER, JsonResponse, Rejected, deadline_of
from serve.http.image_json import checked_top_k, images_of, json_object, only_keys, whole_number
from serve.http.images import FORM, Parsed, choose_top_k, find_model, label_images, read_images
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.models import Models
from serve.model.outcomes import Outcome

_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON with base64. Of several images, one that "
    "cannot be labelled is a result with its status and error; alone, it is the answer's status. Limits: {bytes:,} bytes, "
    "{images} images of {pixels:,} pixels, {seconds:g} s. Bodies may be packed (Content-Encoding gzip or deflate)."
)


def classify_route(models: Models, config: ServeConfig) -> Operation:
    """Return the route, described with this endpoint's limits."""
    num_classes = min((len(backend.labels) for backend in models), default=config.top_k)
    most = Field(min(config.top_k, num_classes), ge=1, le=num_classes, description="Labels per image, best first.")
    in_json, in_form = classify_bodies(config.max_images, (int, most))
    about = About(
        "Label images",
        {JSON: ClassifyAnswer},
        errors=(400, 404, 405, 413, 415, 422, 503, 504),
        text=_TEXT.format(
            bytes=config.max_request_bytes,
            images=config.max_images,
            pixels=config.max_pixels,
            seconds=config.deadline_s,
        ),
        body={"image/*": bytes, BINARY: bytes, FORM: in_form, JSON: in_json},
        query={"top_k": Annotated[int, most], "model": ModelQuery},
        headers={TIMEOUT_HEADER: TimeoutSeconds},
    )
    return Operation("POST", "/v1/classify", Classify(models, config).answer, about)


class Classify:
    """The route, as a function of a request to its answer.

    Args:
        models: Of which the query names one.
        config: Limits and defaults.
    """

    def __init__(self, models: Models, config: ServeConfig) -> None:
        self._models = models
        self._config = config

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            Rejected: The request is at fault.
            UnknownModelError: There is no such model.
            RequestError: Overloaded, not ready, or too late.
            InputError: The one image of the request cannot be labelled.
        """
        deadline = deadline_of(request, self._config.deadline_s)
        backend = find_model(request, self._models, request.query_params.get("model"))
        asked_k = request.query_params.get("top_k")
        query_k = None if asked_k is None else whole_number(asked_k)
        parsed = await read_images(request, self._config, deadline, _parse_json)
        top_k = self._top_k(query_k, parsed.top_k, len(backend.labels))
        outcomes = await label_images(backend, parsed, deadline, top_k=top_k)
        spec, results = backend.spec, [_result(outcome, backend.labels) for outcome in outcomes]
        return JsonResponse(ClassifyAnswer(model=spec.name, model_version=spec.version, results=results))

    def _top_k(self, query: int | None, body: int | None, num_classes: int) -> int:
        if query is not None and body is not None and query != body:
            raise Rejected(400, f"top_k is given twice: {query} in the query and {body} in the body")
        return choose_top_k(query if query is not None else body, self._config, num_classes)


def _result(outcome: Outcome, names: Sequence[str]) -> Result:
    if isinstance(outcome, InputError):
        result: Result = {"status": outcome.status, "error": str(outcome)}
        if outcome.width is not None and outcome.height is not None:
            result |= {"width": outcome.width, "height": outcome.height}
        return result
    labels: list[Label] = [
        {"label": names[i], "label_id": i, "score": score}
        for i, score in zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
    ]
    result = {"status": "ok", "width": outcome.width, "height": outcome.height, "labels": labels}
    if outcome.accepted is not None:
        result["accepted"] = outcome.accepted
    return result


def _parse_json(body: bytes, max_images: int) -> Parsed:
    request = json_object(body, max_images, '{"images": [{"b64": "..."}]}')
    only_keys(request, ("images", "top_k"))
    images = images_of(request.get("images"), max_images)
    return Parsed(images, checked_top_k(request.get("top_k")), alone=len(images) == 1)
