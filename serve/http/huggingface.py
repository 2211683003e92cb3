"""POST /models/M in the form of Hugging Face's image classification, for clients that are made for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from serve.config import ServeConfig
from serve.http.image_route import ImageRoute
from serve.http.images import STRICT, File, JsonBody, Parsed, Score, about_images
from serve.http.openapi import JSON
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Labelled, Outcome

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


class HuggingFace(ImageRoute):
    """The route."""

    def __init__(self, models: Models, config: ServeConfig) -> None:
        summary = "Label an image (Hugging Face's image classification)"
        about = about_images(summary, list[LabelScore], _TEXT, {JSON: ImageClassificationRequest})
        super().__init__("/models/{model}", about, ImageClassificationRequest, models, config)

    def render(self, backend: Engine, outcomes: list[Outcome], _: Parsed) -> list[LabelScore]:
        """Return the answer's JSON."""
        (outcome,) = outcomes
        assert isinstance(outcome, Labelled), "the error of an image that is alone is raised"
        best = zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
        return [LabelScore(label=backend.labels[index], score=score) for index, score in best]
