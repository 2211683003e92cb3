"""POST /v1/embeddings: images in, the model's penultimate features out, in the form that OpenAI's clients expect."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model, model_validator
from typing_extensions import TypedDict

from models.errors import InputError
from serve.config import ServeConfig
from serve.http.asgi import Rejected
from serve.http.images import (
    FORM,
    STRICT,
    Base64,
    EncodedImage,
    File,
    ImageRoute,
    JsonBody,
    ModelQuery,
    Parsed,
    Status,
    several,
)
from serve.http.openapi import JSON, About
from serve.model.engine import Engine
from serve.model.models import Models
from serve.model.outcomes import Outcome

_TEXT = (
    "The body is one image, a form with one or more fields `image`, or JSON: `images` as for /v1/classify, or `input` as "
    "OpenAI's clients send it, where each string is an image in base64 or a data: address. The values are those that "
    "`shardlabel label --embeddings` writes. Of several images, one that cannot be read has a status and an error in place "
    "of its embedding; alone, it is the answer's status. 404 where the model's entry names no embedding tensor."
)
_ONE_OR_MORE = BeforeValidator(
    lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=Base64 | list[Base64]
)
# What numpy holds is written as it is: a list of floats in Python would be 20 times as large.
_NUMBERS_OR_TEXT = WithJsonSchema(
    {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}]}
)


class EmbeddingsRequest(JsonBody):
    """Images to embed: `images` as for /v1/classify, or `input` as OpenAI's clients send it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["images"]}, {"required": ["input"]}]})

    images: list[EncodedImage] = Field(default=[])
    input: list[File] = Field(default=[])
    model: Annotated[str | None, Field(description="The model's name; the first unless given.")] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[None, Field(description="The model's embeddings have one width.")] = None
    user: Annotated[Any, Field(description="Taken, and without effect.")] = None

    @model_validator(mode="after")
    def _check(self) -> EmbeddingsRequest:
        if bool(self.images) == bool(self.input):
            raise ValueError("it must have images or input, and not both")
        return self

    def parsed(self) -> Parsed:
        """Return the parsed request."""
        images = self.input or [image.b64 for image in self.images]
        return Parsed(images, encoding=self.encoding_format, model=self.model)


class Embedding(TypedDict):
    """One image's embedding, or why there is none."""

    object: Literal["embedding"]
    index: Annotated[int, Field(ge=0, description="The image's place in the request.")]
    status: Status
    error: NotRequired[str]
    embedding: NotRequired[
        Annotated[Any, Field(description="float32: numbers, or base64 of them, little-endian."), _NUMBERS_OR_TEXT]
    ]


class EmbeddingsAnswer(TypedDict):
    """One embedding per image, in order."""

    object: Literal["list"]
    model: str
    model_version: str
    data: list[Embedding]
    usage: dict[str, int]


class Embeddings(ImageRoute):
    """The route, described with this endpoint's limits."""

    gives_embeddings = True

    def __init__(self, models: Models, config: ServeConfig) -> None:
        images: Any = several(EncodedImage, config)
        one_or_more: Any = Annotated[several(File, config), _ONE_OR_MORE]
        in_json = create_model(
            "EmbeddingsRequest", __base__=EmbeddingsRequest, images=(images, []), input=(one_or_more, [])
        )
        in_form = create_model("EmbeddingsForm", __config__=STRICT, image=(several(bytes, config), ...))
        body = {FORM: in_form, JSON: in_json}
        about = About("Embed images", {JSON: EmbeddingsAnswer}, text=_TEXT, body=body, query={"model": ModelQuery})
        super().__init__("/v1/embeddings", about, models, config)

    def check(self, backend: Engine, top_k: int | None) -> None:
        """Raise `Rejected` where the model has none, or labels are asked for."""
        if backend.spec.embedding is None:
            raise Rejected(
                404,
                f"model {backend.spec.name!r} has no embeddings: its entry names no embedding tensor; "
                "`shardlabel models add --embedding TENSOR` registers a model with one",
            )
        if top_k is not None:
            raise Rejected(400, "embeddings have no top_k; leave it out, or ask /v1/classify for labels")

    def render(self, backend: Engine, outcomes: list[Outcome], parsed: Parsed) -> EmbeddingsAnswer:
        """Return the answer's JSON."""
        data = [_embedding(index, outcome, parsed.encoding) for index, outcome in enumerate(outcomes)]
        # Clients read the usage: an image has no tokens.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        spec = backend.spec
        return EmbeddingsAnswer(object="list", model=spec.name, model_version=spec.version, data=data, usage=usage)


def _embedding(index: int, outcome: Outcome, encoding: str) -> Embedding:
    if isinstance(outcome, InputError):
        return {"object": "embedding", "index": index, "status": outcome.status, "error": str(outcome)}
    values: Any = outcome.embedding
    if encoding == "base64":
        values = base64.b64encode(values.astype("<f4", copy=False).tobytes()).decode()
    return {"object": "embedding", "index": index, "status": "ok", "embedding": values}
