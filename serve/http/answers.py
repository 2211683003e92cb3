"""What the endpoint's own routes take and answer, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict

Pixels = Annotated[int, Field(ge=1, description="Pixels, of the image as stored.")]
Status = Annotated[str, Field(json_schema_extra={"enum": ["ok", "undecodable", "too_large", "unsupported", "empty"]})]

TimeoutSeconds = Annotated[float, Field(gt=0, description="A shorter deadline than the endpoint's own, seconds.")]


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


class Health(TypedDict):
    """The model is ready."""

    status: Literal["ok"]


class Error(TypedDict):
    """Why a request is refused, or has failed."""

    error: str


class EncodedImage(BaseModel):
    """An image file."""

    model_config = ConfigDict(extra="forbid")

    b64: Annotated[str, Field(description="The file in base64.", json_schema_extra={"contentEncoding": "base64"})]


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
