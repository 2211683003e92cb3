"""The RPCs themselves: a message of the protocol in, one out; refusals are raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message

from models.errors import UnknownModelError
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.messages import answer_class, message_class
from serve.oip.grpc.service import HEALTH, SERVICE, STREAM, arrived
from serve.oip.request import BYTES, InferRequest, malformed, shown
from serve.oip.response import InferResponse

# Where the values of a tensor lie in its typed contents: of all that models here take and give.
_CONTENTS = {"BOOL": "bool_contents", "INT32": "int_contents", "FP32": "fp32_contents", BYTES: "bytes_contents"}
# What the RPCs that only tell something answer: the fields of their messages.
_TELL: dict[str, Callable[[Endpoint, Message], dict[str, Any]]] = {
    "ServerLive": lambda endpoint, message: {"live": True},
    "ServerReady": lambda endpoint, message: {"ready": endpoint.models.is_ready},
    "ModelReady": lambda endpoint, message: {"ready": _is_ready(endpoint, message)},
    "ServerMetadata": lambda endpoint, message: endpoint.server_metadata(),
    "ModelMetadata": lambda endpoint, message: endpoint.model_metadata(endpoint.model(message.name, message.version)),
    "ModelConfig": lambda endpoint, message: {
        "config": endpoint.model_config(endpoint.model(message.name, message.version))
    },
    "ModelStatistics": lambda endpoint, message: endpoint.statistics(
        [endpoint.model(message.name, message.version).name] if message.name else endpoint.model_names()
    ),
    "RepositoryIndex": lambda endpoint, message: {"models": endpoint.repository_index(only_ready=message.ready)},
    "Check": lambda endpoint, message: {"status": health_of(endpoint, message.service)},
}


async def answer_to(rpc: str, message: Message, endpoint: Endpoint) -> Message:
    """Answer one message.

    Args:
        rpc: One of `service.RPCS`, ModelStreamInfer or Check.
        message: Its request.
        endpoint: What is asked.

    Raises:
        Rejected: It is refused; or as `Endpoint` raises it.
    """
    if rpc in ("ModelInfer", STREAM):
        return await _infer(rpc, message, endpoint)
    if rpc == "RepositoryModelLoad":
        await endpoint.load(message.model_name, message.parameters)
        return answer_class(rpc)()
    if rpc == "RepositoryModelUnload":
        await endpoint.unload(message.model_name)
        return answer_class(rpc)()
    return answer_class(rpc)(**_TELL[rpc](endpoint, message))


async def _infer(rpc: str, message: Message, endpoint: Endpoint) -> Message:
    started = arrived.get(None) or time.monotonic()

    async def read() -> InferRequest:
        return request_from_message(message)

    model = endpoint.model(message.model_name, message.model_version)
    deadline = started + endpoint.config.deadline_s
    response = response_message(await endpoint.infer(model, read, started=started, deadline=deadline))
    if rpc != STREAM:
        return response
    # Each request has one answer: the first is also the last.
    response.parameters["triton_final_response"].bool_param = True
    return answer_class(STREAM)(infer_response=response)


def health_of(endpoint: Endpoint, service: str) -> str:
    """Tell whether everything (""), one of the services here, or a model answers, as gRPC's health protocol asks.

    Raises:
        UnknownModelError: There is no such service.
    """
    is_ready = (
        endpoint.models.is_ready if service in ("", SERVICE, HEALTH) else endpoint.model(service).backend.is_ready
    )
    return "SERVING" if is_ready else "NOT_SERVING"


def _is_ready(endpoint: Endpoint, message: Message) -> bool:
    """Tell whether a model is ready; one that is not there is not: clients ask in order to wait for one."""
    try:
        return endpoint.model(message.name, message.version).backend.is_ready
    except UnknownModelError:
        return False


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
