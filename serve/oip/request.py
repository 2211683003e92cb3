"""An inference request, out of an HTTP body: JSON alone, JSON with binary tensors behind it, or one raw tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.http.bodies import load_json
from serve.oip.datatypes import BYTES
from serve.oip.faults import malformed, shown
from serve.oip.parameters import Parameters
from serve.oip.tensor import InputTensor, check_tensor


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that the caller wants.

    Attributes:
        name: Of the model's output.
        classification: 0 for the tensor itself; else how many best classes to give as `value:index:label`.
        binary: Whether to send it in binary form.
    """

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What is asked of a model, whatever it travelled by.

    Attributes:
        inputs: At least one.
        outputs: Those wanted; all where there are none.
        id: Echoed in the answer.
        top_k: Labels per image; None for the model's choice.
        timeout_s: After which nobody waits for the answer; None for the server's limit.
        binary_output: Whether outputs that are not named above come in binary form.
    """

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    top_k: int | None = None
    timeout_s: float | None = None
    binary_output: bool = False


@dataclass(slots=True)
class _Binary:
    """The bytes behind the JSON; inputs take theirs in order."""

    data: memoryview
    at: int = 0

    def take(self, size: int, name: str) -> memoryview:
        left = self.data.nbytes - self.at
        if size > left:
            raise malformed(f"input {name!r} says it has {size} bytes of binary data, and {left} are left in the body")
        self.at += size
        return self.data[self.at - size : self.at]


def parse_request(body: bytes, header_length: int | None, most_values: int) -> InferRequest:
    """Read a request with a JSON part.

    Args:
        body: As sent, decompressed.
        header_length: Bytes of the JSON part, before the binary data; None where all is JSON.
        most_values: Of the JSON part.

    Raises:
        Rejected: The body is not what the protocol says, or its JSON has too many values.
    """
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise malformed(f"Inference-Header-Content-Length is {end}, and the body has {len(body)} bytes")
    view = memoryview(body)
    top = _object(load_json(view[:end], most_values), "the request")
    binary = _Binary(view[end:])
    inputs = tuple(_input(item, binary) for item in _list(top.get("inputs"), "inputs"))
    if binary.at != binary.data.nbytes:
        raise malformed(f"{binary.data.nbytes - binary.at} bytes of binary data belong to no input")
    outputs = _list(top.get("outputs"), "outputs", default=True)
    parameters = Parameters(_object(top.get("parameters"), "parameters", default=True))
    default = bool(parameters.flag("binary_data_output"))
    name = top.get("id")
    if name is not None and not isinstance(name, str):
        raise malformed(f"id must be a string, got {shown(name)}")
    return build_request(inputs, [_output(item, binary=default) for item in outputs], parameters, id=name)


def build_request(
    inputs: Sequence[InputTensor], outputs: Sequence[RequestedOutput], parameters: Parameters, *, id: str | None = None
) -> InferRequest:
    """Join what both transports read each in its way, and check what they share.

    Raises:
        Rejected: An input or output is named twice, there is no input, or a parameter is wrong.
    """
    if not inputs:
        raise malformed("inputs must name at least one tensor")
    for kind, names in (("input", [i.name for i in inputs]), ("output", [o.name for o in outputs])):
        if len(set(names)) != len(names):
            raise malformed(f"an {kind} is named twice: {shown(names)}")
    parameters.refuse_what_is_not_offered()
    parameters.integer("priority")  # accepted: every request has the same one here
    timeout_us = parameters.integer("timeout")
    return InferRequest(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        id=id,
        top_k=parameters.integer("top_k", least=1) if "top_k" in parameters.values else None,
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        binary_output=bool(parameters.flag("binary_data_output")),
    )


def _input(item: object, binary: _Binary) -> InputTensor:
    given = _object(item, "an input")
    name, datatype, shape = check_tensor(given.get("name"), given.get("datatype"), given.get("shape"))
    parameters = Parameters(_object(given.get("parameters"), f"parameters of {name!r}", default=True))
    parameters.refuse_what_is_not_offered()
    if "binary_data_size" in parameters.values:
        if "data" in given:
            raise malformed(f"input {name!r} has both data and binary_data_size; it may have one of them")
        payload: memoryview | list[Any] = binary.take(parameters.integer("binary_data_size"), name)
    elif isinstance(given.get("data"), list):
        payload = given["data"]
    elif datatype == BYTES and isinstance(given.get("data"), str) and math.prod(shape) == 1:
        payload = [given["data"]]
    else:
        raise malformed(f"input {name!r} must have data, a list, or the parameter binary_data_size")
    return InputTensor(name, datatype, shape, payload)


def _output(item: object, *, binary: bool) -> RequestedOutput:
    given = _object(item, "an output")
    name = given.get("name")
    if not isinstance(name, str):
        raise malformed(f"an output's name must be a string, got {shown(name)}")
    parameters = Parameters(_object(given.get("parameters"), f"parameters of {name!r}", default=True))
    parameters.refuse_what_is_not_offered()
    own = parameters.flag("binary_data")
    return RequestedOutput(name, parameters.integer("classification"), binary if own is None else own)


def _object(value: object, what: str, *, default: bool = False) -> dict[str, Any]:
    if value is None and default:
        return {}
    if not isinstance(value, dict):
        raise malformed(f"{what} must be a JSON object, got {shown(value)}")
    return value


def _list(value: object, what: str, *, default: bool = False) -> list[Any]:
    if value is None and default:
        return []
    if not isinstance(value, list):
        raise malformed(f"{what} must be a list, got {shown(value)}")
    return value
