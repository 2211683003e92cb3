"""What the endpoint's own routes take and answer, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from typing_extensions import TypedDict

Pixels = Annotated[int, Field(ge=1, description="Pixels, of the image as stored.")]
Status = Annotated[str, Field(json_schema_extra={"enum": ["ok", "undecodable", "too_large", "unsupported", "empty"]})]

Base64 = Annotated[str, Field(description="The file in base64.", json_schema_extra={"contentEncoding": "base64"})]
ModelQuery = Annotated[str, Field(description="The model's name, where there are several; the first unless given.")]
TimeoutSeconds = Annotated[float, Field(gt=0, description="A shorter deadline than the endpoint's own, seconds.")]


# What numpy holds is written as it is: a list of floats in Python would be 20 times as large.
_NUMBERS_OR_TEXT = WithJsonSchema(
    {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}]}
)


class Label(TypedDict):
    """One of an image's labels."""

    label: str
    label_id: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]


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


class LabelScore(TypedDict):
    """One of an image's labels, as Hugging Face's clients expect it."""

    label: str
    score: Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]


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


class Health(TypedDict):
    """The model is ready."""

    status: Literal["ok"]


class Error(TypedDict):
    """Why a request is refused, or has failed."""

    error: str


class EncodedImage(BaseModel):
    """An image file."""

    model_config = ConfigDict(extra="forbid")

    b64: Base64


def classify_bodies(max_images: int, top_k: Any) -> tuple[type[BaseModel], type[BaseModel]]:  # noqa: ANN401 (a type)
    """Return what POST /v1/classify takes, with an endpoint's own limits: as JSON, and as a form."""
    forbid = ConfigDict(extra="forbid")
    some = Field(min_length=1, max_length=max_images)
    return (
        create_model(
            "ClassifyRequest", __config__=forbid, images=(Annotated[list[EncodedImage], some], ...), top_k=top_k
        ),
        create_model("ClassifyForm", __config__=forbid, image=(Annotated[list[bytes], some], ...), top_k=top_k),
    )


class ImageClassificationParameters(BaseModel):
    """What Hugging Face's clients may ask for."""

    model_config = ConfigDict(extra="forbid")

    top_k: Annotated[int, Field(ge=1, description="Labels of the image, best first.")] | None = None
    function_to_apply: Literal["softmax"] | None = None


class ImageClassificationRequest(BaseModel):
    """An image, as Hugging Face's clients send it where there are parameters."""

    model_config = ConfigDict(extra="forbid")

    inputs: Base64
    parameters: ImageClassificationParameters | None = None
    options: Annotated[dict[str, Any], Field(description="Of the older API: taken, and without effect.")] = {}


class _EmbeddingsOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(description="The model's name; the first unless given.")] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: Annotated[str, Field(description="Taken, and without effect.")] = ""


class EmbeddingsRequest(_EmbeddingsOptions):
    """Images to embed, as for /v1/classify."""

    images: Annotated[list[EncodedImage], Field(min_length=1)]


class EmbeddingsInput(_EmbeddingsOptions):
    """Images to embed, as OpenAI's clients send their input."""

    input: Base64 | Annotated[list[Base64], Field(min_length=1)]


class EmbeddingsForm(BaseModel):
    """Images to embed, as a form."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[list[bytes], Field(min_length=1)]
