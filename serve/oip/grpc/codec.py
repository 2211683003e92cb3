"""Inference requests and answers as protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message

from serve.oip.faults import malformed, shown
from serve.oip.grpc.messages import message_class
from serve.oip.request import BYTES, InferRequest
from serve.oip.response import InferResponse

# Where the values of a tensor lie in its typed contents: of all that models here take and give.
_CONTENTS = {"BOOL": "bool_contents", "INT32": "int_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}


def request_from_message(message: Message) -> InferRequest:
    """Read a ModelInferRequest.

    Its outputs come as its inputs did, raw or typed, unless the parameter `binary_data_output` says otherwise.

    Raises:
        Rejected: The message is not what the protocol says.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise malformed(
            f"raw_input_contents must hold one entry for each of {len(message.inputs)} inputs, got {len(raw)}"
        )
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _parameters(tensor.parameters),
            "data": _data(tensor, raw[index] if raw else None),
        }
        for index, tensor in enumerate(message.inputs)
    ]
    # All outputs in one form: of those that are raw, clients know by their number which they are.
    outputs = [
        {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": None}}
        for output in message.outputs
    ]
    parameters = {"binary_data_output": bool(raw), **_parameters(message.parameters)}
    return InferRequest.of({"id": message.id or None, "parameters": parameters, "inputs": inputs, "outputs": outputs})


def response_message(response: InferResponse) -> Message:
    """Write a ModelInferResponse."""
    message = message_class("ModelInferResponse")(
        model_name=response.model_name, model_version=response.model_version, id=response.id or ""
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if output.binary:
            message.raw_output_contents.append(bytes(output.raw()))
        else:
            values = output.data.ravel().tolist() if isinstance(output.data, np.ndarray) else output.data
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(values)
    return message


def _data(tensor: Message, raw: bytes | None) -> object:
    given = {field.name for field, _ in tensor.contents.ListFields()}
    if raw is not None:
        if given:
            raise malformed(f"input {tensor.name!r} has both contents and raw_input_contents; it may have one of them")
        return memoryview(raw)
    expected = _CONTENTS.get(tensor.datatype)
    if expected is None:
        return None
    if given - {expected}:
        raise malformed(
            f"contents of {tensor.name!r} ({tensor.datatype}) must be in {expected}, got {', '.join(sorted(given))}"
        )
    return getattr(tensor.contents, expected)


def _parameters(given: Mapping[str, Message]) -> dict[str, Any]:
    values = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise malformed(f"parameter {shown(name)} has no value")
        values[name] = getattr(parameter, kind)
    return values
