"""Inference requests and answers: their JSON forms, which gRPC's messages are read into too, and their HTTP bodies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema, model_validator

from models.inference.predictions import Float32Array
from serve.http.asgi import Rejected
from serve.http.bodies import from_base64, load_json, shown, validated

BYTES: Literal["BYTES"] = "BYTES"
# The models here take FP32 and BYTES; the others are known, so that a refusal can say what was expected.
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"
]  # fmt: skip
LENGTH_BYTES = 4  # a BYTES element begins with its length
_MAX_TENSORS = 16  # models here have one input and five outputs at most


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a whole number")  # noqa: TRY004 (pydantic wants it so)
    return value


_Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**63 - 1)]  # some clients send them as text
_DATA = WithJsonSchema({"type": "array", "description": "Row-major, nested or flat; images as base64 text."})


class Parameters(BaseModel):
    """Parameters of a request, of an input (binary_data_size) or of an output; others are ignored."""

    model_config = ConfigDict(extra="allow")

    timeout: Annotated[_Count, Field(description="Microseconds; 0 for the endpoint's own deadline.")] = 0
    top_k: Annotated[_Count, Field(ge=1)] | None = None
    priority: Annotated[_Count, Field(description="Taken, and without effect.")] = 0
    binary_data_output: StrictBool | None = None
    binary_data_size: _Count | None = None
    classification: Annotated[_Count, Field(description="This many best classes, as value:index:label.")] = 0
    binary_data: Annotated[StrictBool | None, Field(description="Beats binary_data_output of the request.")] = None

    @model_validator(mode="after")
    def _refuse_what_is_not_offered(self) -> Parameters:
        """Refuse what would change the answer if it were done, and is not done here."""
        for name, value in (self.model_extra or {}).items():
            if name.startswith("shared_memory"):
                raise ValueError("shared memory is not offered; send the tensor's data")
            if name.startswith("sequence_") and value not in (0, "", False, None):
                raise ValueError("sequences are for models that keep a state between requests; this one does not")
        return self


_NO_PARAMETERS = Parameters()  # one for all that have none; null is none too
_MaybeParameters = Annotated[
    Parameters, BeforeValidator(lambda value: _NO_PARAMETERS if value in (None, {}) else value)
]


class Tensor(BaseModel):
    """A tensor; of a request's, `data` are checked against datatype and shape when they are read."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    datatype: Datatype
    shape: Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(max_length=8)]
    parameters: _MaybeParameters = Field(default_factory=lambda: _NO_PARAMETERS)
    data: Annotated[Any, _DATA] = None  # values, or bytes as a memoryview

    @property
    def count(self) -> int:
        """Return how many elements the shape asks for."""
        return math.prod(self.shape)

    def floats(self) -> Float32Array:
        """Read an FP32 tensor as an array of its shape, a view of the request's bytes where it came as bytes.

        Raises:
            Rejected: It is not what its shape says.
        """
        data = self.data
        if isinstance(data, memoryview):
            if data.nbytes != self.count * 4:
                expected = f"{self.count * 4} bytes, FP32 of shape {self.shape}"
                raise malformed(f"data of {self.name!r} must be {expected}, got {data.nbytes} bytes")
            return np.frombuffer(data, "<f4").reshape(self.shape)
        with np.errstate(over="ignore"):
            return np.array(self._flat({int, float}, "numbers"), "<f4").reshape(self.shape)

    def images(self) -> list[bytes]:
        """Read the encoded images of a BYTES tensor, in row-major order.

        Raises:
            Rejected: They are not what the shape says, or not base64 where they came as JSON.
        """
        data, images, at = self.data, [], 0
        if not isinstance(data, memoryview):
            for index, element in enumerate(self._flat({str, bytes}, "strings")):
                try:
                    images.append(from_base64(element) if isinstance(element, str) else element)
                except ValueError as err:
                    text = f"image {index}: JSON carries an image as base64 text, and this is not: {err}"
                    raise malformed(text) from None
            return images
        for index in range(self.count):
            start = at + LENGTH_BYTES
            at = start + int.from_bytes(data[at:start], "little")
            if at > data.nbytes:
                form = "each is a 4-byte little-endian length and that many bytes"
                raise malformed(f"data of {self.name!r} end within element {index} of {self.count}; {form}")
            images.append(bytes(data[start:at]))
        if at != data.nbytes:
            left = f"{data.nbytes - at} bytes after the {self.count} elements of its shape"
            raise malformed(f"data of {self.name!r} have {left}")
        return images

    def _flat(self, allowed: set[type], expected: str) -> Sequence[Any]:
        """Flatten data that came as values, in row-major order."""
        values = [self.data] if isinstance(self.data, str) else self.data
        # Types are looked at first: numpy would read "1" as one, and pad every string to the longest.
        while list in (kinds := set(map(type, values))):
            if len(kinds) > 1:
                raise malformed(f"data of {self.name!r} mix values and lists at one level")
            values = list(chain.from_iterable(values))
        if not kinds <= allowed:
            raise malformed(f"data of {self.name!r} must be {expected} ({self.datatype})")
        if len(values) != self.count:
            expected = f"{self.count} elements, as its shape {self.shape} says"
            raise malformed(f"data of {self.name!r} must have {expected}, got {len(values)}")
        return values


class WantedOutput(BaseModel):
    """An output that the caller wants."""

    name: str
    parameters: _MaybeParameters = Field(default_factory=lambda: _NO_PARAMETERS)


class InferRequest(BaseModel):
    """An inference request. Where no output is named, all are given."""

    id: str | None = None
    parameters: _MaybeParameters = Field(default_factory=lambda: _NO_PARAMETERS)
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=_MAX_TENSORS)]
    outputs: Annotated[list[WantedOutput], Field(max_length=_MAX_TENSORS)] | None = None

    @model_validator(mode="after")
    def _name_each_once(self) -> InferRequest:
        for tensors in (self.inputs, self.outputs or []):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"a tensor is named twice: {shown(names)}")
        return self


def parse_request(body: bytes, header_length: int | None, most_values: int) -> InferRequest:
    """Read an unpacked body: JSON of at most `most_values` values, and after its `header_length` bytes binary data.

    Raises:
        Rejected: The body is not what the protocol says, or its JSON has too many values.
    """
    at = len(body) if header_length is None else header_length
    if at > len(body):
        raise malformed(f"Inference-Header-Content-Length is {at}, and the body has {len(body)} bytes")
    view = memoryview(body)
    request = validated(InferRequest, load_json(view[:at], most_values))
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise malformed(f"input {tensor.name!r} must have either data or the parameter binary_data_size")
        if size is not None:
            if size > len(body) - at:
                raise malformed(f"binary_data_size of {tensor.name!r} is {size}, and {len(body) - at} bytes are left")
            tensor.data, at = view[at : at + size], at + size
        elif not isinstance(tensor.data, list | str):
            raise malformed(f"data of {tensor.name!r} must be a list, got {shown(tensor.data)}")
    if at != len(body):
        raise malformed(f"{len(body) - at} bytes of binary data belong to no input")
    return request


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output, and whether it was asked for in binary form.

    Its data are of the output's shape, batch axis first: numbers, or as objects the elements of a BYTES tensor, UTF-8.
    """

    name: str
    datatype: str
    data: npt.NDArray[Any]
    binary: bool

    def raw(self) -> bytes | memoryview:
        """Return the binary form: little-endian, row-major; of an array's own memory where it lies so."""
        if self.datatype == BYTES:
            elements = self.data.ravel().tolist()
            return b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in elements)
        return np.ascontiguousarray(self.data, self.data.dtype.newbyteorder("<")).data.cast("B")


@dataclass(frozen=True, slots=True)
class InferResponse:
    """What a model answered, whatever it travels by."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]
    id: str | None = None

    def encode(self) -> tuple[bytes, int | None]:
        """Return the HTTP body, and how many bytes of it are JSON: None where no output is binary."""
        tensors = []
        buffers = []
        for output in self.outputs:
            tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.data.shape}
            if output.binary:
                buffers.append(output.raw())
                tensor["parameters"] = {"binary_data_size": len(buffers[-1])}
            elif output.datatype == BYTES:
                tensor["data"] = [element.decode() for element in output.data.ravel()]
            else:
                tensor["data"] = np.ascontiguousarray(output.data).ravel()
            tensors.append(tensor)
        document = {"model_name": self.model_name, "model_version": self.model_version, "outputs": tensors}
        if self.id is not None:
            document["id"] = self.id
        head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return b"".join((head, *buffers)), len(head) if buffers else None


def malformed(message: str) -> Rejected:
    """Build the refusal of a request that breaks the protocol, or does not fit the model."""
    return Rejected(400, message)
