"""The RPCs: each takes a message of the protocol and returns one, or raises."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message

from models.errors import UnknownModelError
from serve.http.asgi import Rejected
from serve.http.bodies import shown, validated
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.messages import answer_class
from serve.oip.grpc.service import HEALTH, SERVICE, STREAM, arrived
from serve.oip.request import BYTES, InferRequest, malformed
from serve.oip.response import InferResponse

INFERS = frozenset({"ModelInfer", STREAM})
# The field of a tensor's typed contents for each datatype that models here take or give.
_CONTENTS = {"BOOL": "bool_contents", "INT32": "int_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}

# Smaller messages are parsed in less than 1 ms, to some megabytes at most.
SMALL_BYTES = 32 * 1024
# By the number of a field, see inference.proto: the fields of the message in it, or the least bytes of each of the values
# that are packed in it. Everything else is one value: text or an image.
_PACKED = {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 4, 7: 8}
_INPUT: dict[int, Any] = {3: 1, 4: {}, 5: _PACKED}
_REQUEST: dict[int, Any] = {4: {}, 5: _INPUT, 6: {2: {}}}


async def answer_to(rpc: str, message: Any, endpoint: Endpoint) -> Message:  # noqa: ANN401 (a message)
    """Answer one message.

    Args:
        rpc: One of `service.RPCS`, ModelStreamInfer or Check.
        message: The parsed request.
        endpoint: What answers.

    Raises:
        Rejected: It is refused; or as `Endpoint` raises it.
    """
    fields: dict[str, Any] = {}
    if rpc in INFERS:
        fields = await _infer(message, endpoint)
        if rpc == STREAM:
            # Each request has one answer: the first is also the last.
            fields = {"infer_response": {**fields, "parameters": {"triton_final_response": {"bool_param": True}}}}
    elif rpc == "RepositoryModelLoad":
        await endpoint.change("load", message.model_name, message.parameters)
    elif rpc == "RepositoryModelUnload":
        await endpoint.change("unload", message.model_name)
    elif rpc == "RepositoryIndex":
        fields["models"] = endpoint.repository_index(only_ready=message.ready)
    elif rpc == "Check":
        fields["status"] = health_of(endpoint, message.service)
    elif rpc == "ModelReady":
        # A model that is not there is not ready, which is no error: clients poll until it is.
        with suppress(UnknownModelError):
            fields["ready"] = endpoint.model(message.name, message.version).backend.is_ready
    else:
        fields = endpoint.tell(rpc, getattr(message, "name", ""), getattr(message, "version", ""))
    return answer_class(rpc)(**fields)


async def _infer(message: Message, endpoint: Endpoint) -> dict[str, Any]:
    started = arrived.get(None) or time.monotonic()

    async def read() -> InferRequest:
        return request_from_message(message)

    model = endpoint.model(message.model_name, message.model_version)
    deadline = started + endpoint.config.deadline_s
    return response_fields(await endpoint.infer(model, read, started=started, deadline=deadline))


def health_of(endpoint: Endpoint, service: str) -> str:
    """Tell whether everything (""), one of the services here, or a model answers, as gRPC's health protocol asks.

    Raises:
        UnknownModelError: There is no such service.
    """
    asked = endpoint.models if service in ("", SERVICE, HEALTH) else endpoint.model(service).backend
    return "SERVING" if asked.is_ready else "NOT_SERVING"


def check_size(message: bytes, *, most_fields: int, most_values: int) -> None:
    """Check a ModelInferRequest before it is parsed: two bytes of it can stand for a message of 100 in memory.

    Args:
        message: As sent.
        most_fields: Of all messages in it; each image among the contents is one.
        most_values: Of one field of numbers.

    Raises:
        Rejected: 413 there are more, 400 it is no message.
    """
    if len(message) <= SMALL_BYTES:
        return
    open_messages = [(0, len(message), _REQUEST)]
    fields = 0
    while open_messages:
        at, end, known = open_messages.pop()
        while at < end:
            fields += 1
            if fields > most_fields:
                raise _too_much(f"more than {most_fields:,} fields")
            tag, at = _varint(message, at)
            start, at = _content(message, at, tag & 7)
            if at > end:
                raise malformed("the message is not of the protocol: a field goes past its end")
            inside = known.get(tag >> 3)
            if tag & 7 == 2 and isinstance(inside, dict):
                open_messages.append((start, at, inside))
            elif isinstance(inside, int) and (at - start) // inside > most_values:
                raise _too_much(f"more than {most_values:,} values in a field")


def _too_much(what: str) -> Rejected:
    return Rejected(413, f"the message has {what}; send numbers as raw_input_contents", kind="too_many_values")


def _content(message: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Return where a field's content begins and ends."""
    if wire_type == 0:
        return at, _varint(message, at)[1]
    if wire_type == 2:
        size, start = _varint(message, at)
        return start, start + size
    if wire_type in (1, 5):
        return at, at + (8 if wire_type == 1 else 4)
    raise malformed("the message is not of the protocol: a field has an unknown wire type")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise malformed("the message is not of the protocol: a number does not end")


def request_from_message(message: Message) -> InferRequest:
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


def response_fields(response: InferResponse) -> dict[str, Any]:
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
