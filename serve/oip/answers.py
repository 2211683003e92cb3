"""What the protocol's routes take and answer in JSON, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from serve.oip.datatypes import DATATYPES

Datatype = Annotated[str, Field(json_schema_extra={"enum": list(DATATYPES)})]
Parameters = Annotated[
    dict[str, Any],
    Field(
        description="timeout (microseconds), top_k, priority, binary_data_output; of an output: binary_data, "
        "classification (this many best classes as value:index:label); of an input: binary_data_size."
    ),
]
HeaderLength = Annotated[
    int,
    Field(
        ge=0,
        description="Bytes of the JSON at the head of a body with binary tensors behind it; 0: the body is one image, "
        "or one tensor. Left out: the body is JSON alone.",
    ),
]


class Live(TypedDict):
    """The server runs."""

    live: bool


class Ready(TypedDict):
    """The models are ready."""

    ready: bool


class ServerMetadata(TypedDict):
    """The server, and the protocol's extensions that it has."""

    name: str
    version: str
    extensions: list[str]


class ModelNames(TypedDict):
    """The names of all models."""

    models: list[str]


class TensorDescription(TypedDict):
    """A model's input or output; -1 is an axis of any length."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(TypedDict):
    """A model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class InputLayout(TypedDict):
    """What a model configuration says of an input beside its name and type."""

    format: str
    dims: list[int]


class ConfiguredTensor(TypedDict):
    """A tensor as a model configuration has it, without its batch axis."""

    name: str
    data_type: str
    format: NotRequired[str]
    dims: list[int]


class ModelConfig(TypedDict):
    """A model configuration, as far as clients read it."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, int]]
    max_batch_size: int
    input: list[ConfiguredTensor]
    output: list[ConfiguredTensor]
    parameters: dict[str, dict[str, str]]


class Duration(TypedDict):
    """How often something happened, and how long that took together."""

    count: int
    ns: int


class ModelCounts(TypedDict):
    """What one replica has answered for one model since it started."""

    name: str
    version: str
    last_inference: Annotated[int, Field(description="Milliseconds since 1970; 0 before the first.")]
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: list[dict[str, Any]]


class Statistics(TypedDict):
    """Counts of models, in this replica."""

    model_stats: list[ModelCounts]


class ModelReady(TypedDict):
    """A model is ready."""

    name: str
    ready: bool


class Loaded(TypedDict):
    """A model is loaded."""

    name: str
    state: Literal["READY"]


class Unloaded(TypedDict):
    """A model is not loaded any more; the requests that it has are finished."""

    name: str
    state: Literal["UNAVAILABLE"]


class IndexEntry(TypedDict):
    """A model in the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class IndexRequest(TypedDict):
    """Which models to list."""

    ready: NotRequired[bool]


class LoadRequest(TypedDict):
    """Nothing that is taken: a model's configuration and files cannot be replaced."""

    parameters: NotRequired[Annotated[dict[str, Any], Field(max_length=0)]]


class UnloadRequest(TypedDict):
    """Taken, and without effect: no model depends on another."""

    parameters: NotRequired[dict[str, Any]]


class Tensor(TypedDict):
    """A tensor with its values."""

    name: str
    shape: Annotated[list[int], Field(max_length=8)]
    datatype: Datatype
    parameters: NotRequired[Parameters]
    data: NotRequired[Annotated[list[Any], Field(description="Row-major, nested or flat; images as base64 text.")]]


class WantedOutput(TypedDict):
    """An output that the caller wants."""

    name: str
    parameters: NotRequired[Parameters]


class InferRequest(TypedDict):
    """An inference request."""

    id: NotRequired[str]
    parameters: NotRequired[Parameters]
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: NotRequired[list[WantedOutput]]


class InferAnswer(TypedDict):
    """The outputs of an inference."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[Tensor]
