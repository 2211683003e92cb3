"""Inference requests and answers as protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.oip.datatypes import BYTES
from serve.oip.faults import malformed, shown
from serve.oip.grpc.messages import message_class
from serve.oip.parameters import Parameters
from serve.oip.request import InferRequest, RequestedOutput, build_request
from serve.oip.response import InferResponse, OutputTensor
from serve.oip.tensor import InputTensor, check_tensor

# Where a tensor's values lie in its typed contents. FP16 and BF16 have no place there: they travel raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def request_from_message(message: Any) -> InferRequest:  # noqa: ANN401 (protobuf)
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
    inputs = [_input(tensor, raw[index] if raw else None) for index, tensor in enumerate(message.inputs)]
    parameters = _parameters(message.parameters)
    asked = parameters.flag("binary_data_output")
    as_raw = bool(raw) if asked is None else asked
    outputs = [
        RequestedOutput(output.name, _parameters(output.parameters).integer("classification"), as_raw)
        for output in message.outputs
    ]
    for output in message.outputs:
        _parameters(output.parameters).refuse_what_is_not_offered()
    values = {**parameters.values, "binary_data_output": as_raw}
    return build_request(inputs, outputs, Parameters(values), id=message.id or None)


def response_message(response: InferResponse) -> Any:  # noqa: ANN401 (protobuf)
    """Write a ModelInferResponse."""
    message = message_class("ModelInferResponse")(
        model_name=response.model_name, model_version=response.model_version, id=response.id or ""
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if output.binary:
            message.raw_output_contents.append(bytes(output.raw()))
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(_values(output))
    return message


def metadata_message(metadata: Mapping[str, Any]) -> Any:  # noqa: ANN401 (protobuf)
    """Write a ModelMetadataResponse from the metadata's JSON form, whose names it shares."""
    return message_class("ModelMetadataResponse")(**metadata)


def config_message(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 (protobuf)
    """Write a ModelConfigResponse from the configuration's JSON form, whose names it shares."""
    return message_class("ModelConfigResponse")(config=config)


def _input(tensor: Any, raw: bytes | None) -> InputTensor:  # noqa: ANN401 (protobuf)
    name, datatype, shape = check_tensor(tensor.name, tensor.datatype, list(tensor.shape))
    _parameters(tensor.parameters).refuse_what_is_not_offered()
    given = {field.name for field, _ in tensor.contents.ListFields()}
    if raw is not None:
        if given:
            raise malformed(f"input {name!r} has both contents and raw_input_contents; it may have one of them")
        return InputTensor(name, datatype, shape, memoryview(raw))
    expected = _CONTENTS.get(datatype)
    if expected is None:
        raise malformed(f"input {name!r} is {datatype}, which has to be sent as raw_input_contents")
    if given - {expected}:
        raise malformed(f"contents of {name!r} ({datatype}) must be in {expected}, got {', '.join(sorted(given))}")
    return InputTensor(name, datatype, shape, getattr(tensor.contents, expected))


def _parameters(given: Mapping[str, Any]) -> Parameters:
    values = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise malformed(f"parameter {shown(name)} has no value")
        values[name] = getattr(parameter, kind)
    return Parameters(values)


def _values(output: OutputTensor) -> Sequence[Any]:
    return output.data.ravel().tolist() if isinstance(output.data, np.ndarray) else output.data
