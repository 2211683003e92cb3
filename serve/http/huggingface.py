"""POST /models/M in the form of Hugging Face's image classification, for clients that are made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.config import ServeConfig
from serve.http.answers import ImageClassificationRequest, LabelScore, TimeoutSeconds
from serve.http.asgi import TIMEOUT_HEADER, JsonResponse, Rejected, deadline_of
from serve.http.image_json import checked_top_k, decoded, json_object, kind_of, only_keys
from serve.http.images import Parsed, choose_top_k, find_model, label_images, read_images
from serve.http.openapi import BINARY, JSON, About, Operation
from serve.model.models import Models
from serve.model.outcomes import Labelled

_TEXT = (
    "The body is one image, or JSON with base64 and parameters. Scores are softmax probabilities, so that "
    "function_to_apply may only be softmax. Limits and errors are those of /v1/classify."
)


def huggingface_route(models: Models, config: ServeConfig) -> Operation:
    """Return the route, described with this endpoint's limits."""
    about = About(
        "Label an image (Hugging Face's image classification)",
        {JSON: list[LabelScore]},
        errors=(400, 404, 405, 413, 415, 422, 503, 504),
        text=_TEXT,
        body={"image/*": bytes, BINARY: bytes, JSON: ImageClassificationRequest},
        headers={TIMEOUT_HEADER: TimeoutSeconds},
    )

    async def answer(request: Request) -> Response:
        deadline = deadline_of(request, config.deadline_s)
        backend = find_model(request, models, request.path_params["model"])
        parsed = await read_images(request, config, deadline, _parse_json, allow_form=False)
        top_k = choose_top_k(parsed.top_k, config, len(backend.labels))
        (outcome,) = await label_images(backend, parsed, deadline, top_k=top_k)
        assert isinstance(outcome, Labelled), "the error of an image that is alone is raised"
        best = zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
        return JsonResponse([LabelScore(label=backend.labels[index], score=score) for index, score in best])

    return Operation("POST", "/models/{model}", answer, about)


def _parse_json(body: bytes, max_images: int) -> Parsed:
    request = json_object(body, max_images, '{"inputs": "<the image in base64>", "parameters": {"top_k": 5}}')
    # `options` are those of the older API, of its cache and its queue: there is nothing here that they would change.
    only_keys(request, ("inputs", "parameters", "options"))
    inputs = request.get("inputs")
    if not isinstance(inputs, str):
        raise Rejected(400, f"inputs must be one image in base64, got {kind_of(inputs)}")
    return Parsed(decoded([inputs], "inputs"), _top_k(request.get("parameters")), alone=True)


def _top_k(parameters: Mapping[str, Any] | None) -> int | None:
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise Rejected(400, f"parameters must be an object, got {kind_of(parameters)}")
    only_keys(parameters, ("top_k", "function_to_apply"), "parameters")
    if parameters.get("function_to_apply") not in (None, "softmax"):
        raise Rejected(400, "function_to_apply must be softmax, which the scores are given by; leave it out")
    return checked_top_k(parameters.get("top_k"))
