"""POST /models/M in the form of Hugging Face's image classification, for clients that are made for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from serve.config import ServeConfig
from serve.http.asgi import TIMEOUT, JsonResponse, deadline_of
from serve.http.images import (
    ERRORS,
    RAW,
    STRICT,
    File,
    JsonBody,
    Parsed,
    Score,
    choose_top_k,
    find_model,
    label_images,
    read_images,
)
from serve.http.openapi import JSON, About, Operation
from serve.model.backend import Labelled
from serve.model.models import Models

_TEXT = (
    "The body is one image, or JSON with base64 and parameters. Scores are softmax probabilities, so that "
    "function_to_apply may only be softmax. Limits and errors are those of /v1/classify."
)


class ImageClassificationParameters(BaseModel):
    """What Hugging Face's clients may ask for."""

    model_config = STRICT

    top_k: Annotated[int, Field(ge=1, description="Labels of the image, best first.")] | None = None
    function_to_apply: Literal["softmax"] | None = None


class ImageClassificationRequest(JsonBody):
    """An image, as Hugging Face's clients send it where there are parameters."""

    inputs: File
    parameters: ImageClassificationParameters | None = None
    options: Annotated[Any, Field(description="Of the older API: taken, and without effect.")] = None

    def parsed(self) -> Parsed:
        """Return the request that it stands for."""
        return Parsed([self.inputs], None if self.parameters is None else self.parameters.top_k)


class LabelScore(TypedDict):
    """One of an image's labels, as Hugging Face's clients expect it."""

    label: str
    score: Score


def huggingface_route(models: Models, config: ServeConfig) -> Operation:
    """Return the route, described with this endpoint's limits."""
    about = About(
        "Label an image (Hugging Face's image classification)",
        {JSON: list[LabelScore]},
        errors=ERRORS,
        text=_TEXT,
        body={**RAW, JSON: ImageClassificationRequest},
        headers=TIMEOUT,
    )

    async def answer(request: Request) -> Response:
        deadline = deadline_of(request, config.deadline_s)
        backend = find_model(request, models, request.path_params["model"])
        parsed = await read_images(request, config, deadline, ImageClassificationRequest, allow_form=False)
        top_k = choose_top_k(parsed.top_k, config, len(backend.labels))
        (outcome,) = await label_images(backend, parsed, deadline, top_k=top_k)
        assert isinstance(outcome, Labelled), "the error of an image that is alone is raised"
        best = zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
        return JsonResponse([LabelScore(label=backend.labels[index], score=score) for index, score in best])

    return Operation("POST", "/models/{model}", answer, about)
