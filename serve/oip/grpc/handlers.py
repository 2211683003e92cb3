"""The RPCs themselves: a message of the protocol in, one out; refusals are raised."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from models.errors import UnknownModelError
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.codec import request_from_message, response_message
from serve.oip.grpc.messages import answer_class
from serve.oip.grpc.service import HEALTH, SERVICE, STREAM, arrived
from serve.oip.request import InferRequest

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
