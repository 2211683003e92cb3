"""Images in, labels out: POST /v1/classify, and POST /models/M in the form of Hugging Face's image classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, WithJsonSchema, create_model
from typing_extensions import TypedDict

from models.errors import InputError
from serve.config import ServeConfig
from serve.http.images import (
    FORM,
    STRICT,
    EncodedImage,
    File,
    ImageRoute,
    JsonBody,
    ModelQuery,
    Parsed,
    Score,
    Status,
    several,
)
from serve.http.openapi import JSON, About
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Labelled, Outcome

_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON with base64. Of several images, one that "
    "cannot be labelled is a result with its status and error; alone, it is the answer's status. Limits: "
    "{0.max_request_bytes:,} bytes, {0.max_images} images of {0.max_pixels:,} pixels, {0.deadline_s:g} s. Bodies may be "
    "compressed (Content-Encoding gzip or deflate)."
)
_HUGGING_FACE_TEXT = (
    "The body is one image, or JSON with base64 and parameters. Scores are softmax probabilities, so that "
    "function_to_apply may only be softmax. Limits and errors are those of /v1/classify."
)
Pixels = Annotated[int, Field(ge=1, description="Pixels, of the image as stored.")]


class ClassifyRequest(JsonBody):
    """Images in base64, and how many labels each is to get."""

    images: list[EncodedImage]
    top_k: int | None

    def parsed(self) -> Parsed:
        """Return the parsed request."""
        return Parsed([image.b64 for image in self.images], self.top_k)


class Label(TypedDict):
    """One of an image's labels."""

    label: str
    label_id: Annotated[int, Field(ge=0)]
    score: Score


class Result(TypedDict):
    """What became of one image: labels, best first, or an error."""

    status: Status
    error: NotRequired[str]
    width: NotRequired[Pixels]
    height: NotRequired[Pixels]
    labels: NotRequired[list[Label]]
    accepted: NotRequired[Annotated[bool, Field(description="Whether the first label reaches its class's threshold.")]]


class ClassifyAnswer(TypedDict):
    """One result per image, in order."""

    model: str
    model_version: str
    results: list[Result]


class Classify(ImageRoute):
    """The route, described with this endpoint's limits."""

    def __init__(self, models: Models, config: ServeConfig) -> None:
        most = min((len(backend.labels) for backend in models), default=config.top_k)
        schema = {"type": "integer", "minimum": 1, "maximum": most, "default": min(config.top_k, most)}
        top_k = Annotated[int | None, WithJsonSchema(schema | {"description": "Labels per image, best first."})]
        images = (several(EncodedImage, config), ...)
        in_json = create_model("ClassifyRequest", __base__=ClassifyRequest, images=images, top_k=(top_k, None))
        files = (several(bytes, config), ...)
        in_form = create_model("ClassifyForm", __config__=STRICT, image=files, top_k=(top_k, None))
        about = About(
            "Label images",
            {JSON: ClassifyAnswer},
            text=_TEXT.format(config),
            body={FORM: in_form, JSON: in_json},
            query={"top_k": top_k, "model": ModelQuery},
        )
        super().__init__("/v1/classify", about, models, config)

    def render(self, backend: Engine, outcomes: list[Outcome], _: Parsed) -> ClassifyAnswer:
        """Return the answer's JSON."""
        spec, results = backend.spec, [_result(outcome, backend.labels) for outcome in outcomes]
        return ClassifyAnswer(model=spec.name, model_version=spec.version, results=results)


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
        """Return the parsed request."""
        return Parsed([self.inputs], None if self.parameters is None else self.parameters.top_k)


class LabelScore(TypedDict):
    """One of an image's labels, as Hugging Face's clients expect it."""

    label: str
    score: Score


class HuggingFace(ImageRoute):
    """The route."""

    def __init__(self, models: Models, config: ServeConfig) -> None:
        summary = "Label an image (Hugging Face's image classification)"
        body = {JSON: ImageClassificationRequest}
        about = About(summary, {JSON: list[LabelScore]}, text=_HUGGING_FACE_TEXT, body=body)
        super().__init__("/models/{model}", about, models, config)

    def render(self, backend: Engine, outcomes: list[Outcome], _: Parsed) -> list[LabelScore]:
        """Return the answer's JSON."""
        (outcome,) = outcomes
        assert isinstance(outcome, Labelled), "the error of an image that is alone is raised"
        best = zip(outcome.label_ids.tolist(), outcome.scores, strict=True)
        return [LabelScore(label=backend.labels[index], score=score) for index, score in best]
