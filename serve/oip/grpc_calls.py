"""The RPCs of `inference.GRPCInferenceService`: bytes in, a message and a status out."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from serve.access_log import AccessLog
from serve.api_keys import ApiKeys
from serve.asgi import Rejected, as_rejected
from serve.metrics import ServeMetrics
from serve.oip.endpoint import Endpoint
from serve.oip.faults import GRPC_CODES, malformed
from serve.oip.grpc_codec import config_message, metadata_message, request_from_message, response_message
from serve.oip.messages import message_class
from serve.oip.service import SERVICE

logger = logging.getLogger(__name__)

# Answered without a key, as over HTTP: who watches over the endpoint has none.
OPEN = frozenset({"ServerLive", "ServerReady"})
# gRPC refuses headers of more than 8 kB in all.
_MAX_DETAILS = 2000


class Context(Protocol):
    """What is used of `ray.serve.grpc_util.RayServegRPCContext`, and of gRPC's own."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status that the caller gets."""

    def set_details(self, details: str) -> None:
        """Set its text."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """Set what is sent after the answer."""

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return what the caller sent beside the message."""

    def peer(self) -> str:
        """Return who is at the other end of the connection, as `ipv4:127.0.0.1:50000`."""


class Message(Protocol):
    """What Ray Serve asks of an answer."""

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """Return the message's bytes."""


class GrpcCalls:
    """The service, in front of an endpoint.

    Args:
        endpoint: What answers.
        keys: Who may come in; None for everyone.
        metrics: Counts calls.
        access_log: Gets a line per call.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        keys: ApiKeys | None = None,
        metrics: ServeMetrics | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._metrics = metrics
        self._access_log = access_log
        self._handlers: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }

    async def answer(self, rpc: str, request: bytes, context: Context) -> Message:
        """Answer one call.

        Args:
            rpc: One of `service.RPCS`.
            request: The message as sent.
            context: Gets the status where the call fails; the message is then an empty one.
        """
        began = time.perf_counter()
        status = 499  # where the task is cancelled: the client has hung up
        kind: str | None = "gone"
        if self._metrics is not None:
            self._metrics.in_flight.inc()
        try:
            answer = await self._answer(rpc, request, context)
        except Exception as err:
            rejected = as_rejected(err)
            if rejected is None:
                # Its text may name files of this machine: it goes to the log.
                logger.exception("call failed rpc=%s", rpc)
                rejected = Rejected(500, "the server failed on this call; its log says why", kind="internal")
            status, kind = rejected.status, rejected.kind
            _refuse(context, rejected)
            answer = message_class(f"{rpc}Response")()
        else:
            status, kind = 200, None
        finally:
            seconds = time.perf_counter() - began
            if self._metrics is not None:
                self._metrics.in_flight.dec()
                self._metrics.request(f"grpc/{rpc}", status, seconds, kind)
            if self._access_log is not None:
                sent = dict(context.invocation_metadata())
                self._access_log.add(
                    client=_client(context.peer(), sent.get("x-forwarded-for")),
                    method="gRPC",
                    path=f"/{SERVICE}/{rpc}",
                    status=status,
                    ms=round(1000 * seconds, 2),
                    bytes=len(request),
                    request_id=sent.get("x-request-id", ""),
                    **({"error": kind} if kind else {}),
                )
        return answer

    async def _answer(self, rpc: str, request: bytes, context: Context) -> Message:
        if self._keys is not None and rpc not in OPEN:
            sent = dict(context.invocation_metadata()).get("authorization")
            self._keys.check(None if sent is None else sent.encode())
        limit = self._endpoint.limits.max_request_bytes
        if len(request) > limit:
            raise Rejected(413, f"the message may have at most {limit:,} bytes, got {len(request):,}")
        try:
            message = message_class(f"{rpc}Request").FromString(request)
        except DecodeError:
            raise malformed(f"the message is not a {rpc}Request of the protocol") from None
        return await self._handlers[rpc](message)

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
        started = time.monotonic()
        response = await self._endpoint.infer(
            self._endpoint.model(message.model_name, message.model_version),
            lambda: request_from_message(message),
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


def _client(peer: str, forwarded: str | None) -> str:
    """Return the caller's address: a HAProxy of this machine says whose call it passes on; others might lie."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    is_here = address.removeprefix("::ffff:").startswith("127.") or address == "::1"
    return forwarded if forwarded and is_here else address


def _refuse(context: Context, rejected: Rejected) -> None:
    context.set_code(grpc.StatusCode[GRPC_CODES.get(rejected.status, "INTERNAL")])
    # A lone surrogate has no UTF-8 form, and gRPC wants one.
    context.set_details(str(rejected)[:_MAX_DETAILS].encode("utf-8", "replace").decode())
    for name, value in rejected.headers:
        if name == b"retry-after":
            # gRPC's own word for it; its clients wait as long where retries are on.
            context.set_trailing_metadata([("grpc-retry-pushback-ms", str(int(value) * 1000))])
