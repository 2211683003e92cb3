"""The messages of ModelInfer: one is checked before it is parsed, and read into a request; an answer is written as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from serve.http.asgi import Rejected
from serve.http.bodies import shown, validated
from serve.oip.codec import BYTES, InferRequest, InferResponse, malformed
from serve.oip.grpc.messages import request_class

# The field of a tensor's typed contents for each datatype that models here take or give.
_CONTENTS = {"BOOL": "bool_contents", "INT32": "int_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}

SMALL_BYTES = 32 * 1024  # smaller messages are parsed in less than 1 ms, to some megabytes at most
# Of a number that is packed with others in a field; of other types it takes 1 byte.
_LEAST_BYTES = {FieldDescriptor.CPPTYPE_FLOAT: 4, FieldDescriptor.CPPTYPE_DOUBLE: 8}


def check_size(message: bytes, *, most_fields: int, most_values: int) -> None:
    """Check a ModelInferRequest before it is parsed: two bytes of it can stand for a message of 100 in memory.

    Fields of all messages in it are counted, where each image among the contents is one, and values of one field.

    Raises:
        Rejected: 413 there are more, 400 it is no message.
    """
    if len(message) <= SMALL_BYTES:
        return
    for index, values in enumerate(_fields(memoryview(message), request_class("ModelInfer").DESCRIPTOR)):
        if index == most_fields or values > most_values:
            what = f"{most_fields:,} fields" if index == most_fields else f"{most_values:,} values in a field"
            text = f"the message has more than {what}; send numbers as raw_input_contents"
            raise Rejected(413, text, kind="too_many_values")


def _fields(message: memoryview, kind: Descriptor) -> Iterator[int]:
    """Yield for each field of a message, and of those in it, how many values it may have."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type == 0:
            size = _varint(message, at)[1] - at
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise malformed("the message is not of the protocol: a field has an unknown wire type")
        content, at = message[at : at + size], at + size
        if at > len(message):
            raise malformed("the message is not of the protocol: a field goes past its end")
        field = kind.fields_by_number.get(tag >> 3)
        if field is None or wire_type != 2 or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            yield 1
        elif field.message_type is None:
            yield size // _LEAST_BYTES.get(field.cpp_type, 1)
        else:
            yield 1
            yield from _fields(content, field.message_type)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise malformed("the message is not of the protocol: a number does not end")


def read_request(message: Message) -> InferRequest:
    """Read a ModelInferRequest.

    Its outputs come as its inputs did, raw or typed, unless the parameter `binary_data_output` says otherwise.

    Raises:
        Rejected: The message is not what the protocol says.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise malformed(f"raw_input_contents must have an entry per input, {len(message.inputs)}, got {len(raw)}")
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
    document = {"id": message.id or None, "parameters": parameters, "inputs": inputs, "outputs": outputs}
    return validated(InferRequest, document)


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
        got = ", ".join(sorted(given))
        raise malformed(f"contents of {tensor.name!r} ({tensor.datatype}) must be in {expected}, got {got}")
    return getattr(tensor.contents, expected)


def _parameters(given: Mapping[str, Message]) -> dict[str, Any]:
    values = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise malformed(f"parameter {shown(name)} has no value")
        values[name] = getattr(parameter, kind)
    return values


def answer_fields(response: InferResponse) -> dict[str, Any]:
    """Return the fields of a ModelInferResponse."""
    outputs = []
    raw = []
    for output in response.outputs:
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.data.shape}
        if output.binary:
            raw.append(bytes(output.raw()))
        else:
            tensor["contents"] = {_CONTENTS[output.datatype]: output.data.ravel().tolist()}
        outputs.append(tensor)
    return {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "outputs": outputs,
        "raw_output_contents": raw,
    }
