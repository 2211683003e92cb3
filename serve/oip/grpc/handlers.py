"""The RPCs themselves: a message of the protocol in, one out; refusals are raised."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from serve.http.asgi import Rejected
from serve.oip.endpoint import Endpoint
from serve.oip.grpc.codec import config_message, metadata_message, request_from_message, response_message
from serve.oip.grpc.messages import answer_class, message_class
from serve.oip.grpc.service import HEALTH, SERVICE, STREAM, arrived
from serve.oip.request import InferRequest


class Handlers:
    """What answers each RPC, in front of an endpoint.

    Args:
        endpoint: What is asked.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.by_name: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            STREAM: self._model_stream_infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_model_load,
            "RepositoryModelUnload": self._repository_model_unload,
            "Check": self._check,
        }

    def is_serving(self, service: str) -> bool:
        """Tell whether a service answers, as gRPC's health protocol asks.

        Args:
            service: "" for everything, one of the services here, or a model's name.

        Raises:
            Rejected: 404, there is no such service.
        """
        if service in ("", SERVICE, HEALTH):
            return self._endpoint.is_ready
        return self._endpoint.model(service).backend.is_ready

    async def _server_live(self, _: Any) -> Any:  # noqa: ANN401 (protobuf)
        return message_class("ServerLiveResponse")(live=True)

    async def _server_ready(self, _: Any) -> Any:  # noqa: ANN401 (protobuf)
        return message_class("ServerReadyResponse")(ready=self._endpoint.is_ready)

    async def _model_ready(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        # A model that is not there is not ready: clients ask in order to wait for one, and expect no error.
        try:
            ready = self._endpoint.model(message.name, message.version).backend.is_ready
        except Rejected:
            ready = False
        return message_class("ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, _: Any) -> Any:  # noqa: ANN401 (protobuf)
        return message_class("ServerMetadataResponse")(**self._endpoint.server_metadata())

    async def _model_metadata(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        return metadata_message(self._endpoint.model_metadata(self._endpoint.model(message.name, message.version)))

    async def _model_infer(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        started = arrived.get(None) or time.monotonic()

        async def read() -> InferRequest:
            return request_from_message(message)

        response = await self._endpoint.infer(
            self._endpoint.model(message.model_name, message.model_version),
            read,
            started=started,
            deadline=started + self._endpoint.limits.deadline_s,
        )
        return response_message(response)

    async def _model_config(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        return config_message(self._endpoint.model_config(self._endpoint.model(message.name, message.version)))

    async def _model_statistics(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        names = self._endpoint.model_names()
        if message.name:
            names = [self._endpoint.model(message.name, message.version).name]
        return message_class("ModelStatisticsResponse")(**self._endpoint.statistics(names))

    async def _repository_index(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        return message_class("RepositoryIndexResponse")(
            models=self._endpoint.repository_index(only_ready=message.ready)
        )

    async def _repository_model_load(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        await self._endpoint.load(message.model_name, message.parameters)
        return message_class("RepositoryModelLoadResponse")()

    async def _repository_model_unload(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        await self._endpoint.unload(message.model_name)
        return message_class("RepositoryModelUnloadResponse")()

    async def _model_stream_infer(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        response = await self._model_infer(message)
        # Each request has one answer: the first is also the last.
        response.parameters["triton_final_response"].bool_param = True
        return answer_class(STREAM)(infer_response=response)

    async def _check(self, message: Any) -> Any:  # noqa: ANN401 (protobuf)
        return answer_class("Check")(status="SERVING" if self.is_serving(message.service) else "NOT_SERVING")
