"""The RPCs of `inference.GRPCInferenceService`: bytes in, a message and a status out."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from serve.http.access_log import AccessLog
from serve.http.asgi import Rejected, as_rejected
from serve.http.bodies import BodyMemory, Held
from serve.http.keys import ApiKeys
from serve.http.trace_context import trace_field
from serve.metrics.replica_metrics import ServeMetrics
from serve.oip.endpoint import Endpoint
from serve.oip.faults import GRPC_CODES, malformed
from serve.oip.grpc.codec import config_message, metadata_message, request_from_message, response_message
from serve.oip.grpc.messages import message_class
from serve.oip.grpc.service import SERVICE, Metadata, Refusal, arrived
from serve.oip.grpc.wire import check_size
from serve.oip.request import InferRequest

logger = logging.getLogger(__name__)

# Answered without a key, as over HTTP: who watches over the endpoint has none.
OPEN = frozenset({"ServerLive", "ServerReady"})
# gRPC refuses headers of more than 8 kB in all.
_MAX_DETAILS = 2000
# Of every message but an inference request: a name or two.
MAX_OPTIONS_BYTES = 64 * 1024
# What a ModelInferRequest has at most: each image is a field, or one of the raw contents; names, parameters and outputs.
FIELDS_AN_IMAGE = 1
FIELDS_BESIDE = 1000


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
        memory: The budget of all bodies; see `serve.http.bodies`.
        keys: Who may come in; None for everyone.
        metrics: Counts calls.
        access_log: Gets a line per call.
        admit: Raises OverloadedError where so many images would not fit into the queue.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        memory: BodyMemory,
        *,
        keys: ApiKeys | None = None,
        metrics: ServeMetrics | None = None,
        access_log: AccessLog | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._memory = memory
        self._keys = keys
        self._metrics = metrics
        self._access_log = access_log
        self._admit = admit
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

    def look(self, rpc: str, metadata: Metadata) -> Refusal | None:
        """Return why a call is refused before its message is received; see `service.look`."""
        try:
            self._check_key(rpc, metadata)
            if rpc == "ModelInfer" and self._admit is not None:
                self._admit(1)
        except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
            rejected = self._rejected(rpc, err)
            if self._metrics is not None:
                self._metrics.request(f"grpc/{rpc}", rejected.status, 0.0, rejected.kind)
            return _refusal(rejected)
        return None

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
        held = Held(self._memory)
        try:
            answer = await self._answer(rpc, request, context, held)
        except Exception as err:  # noqa: BLE001 (the edge: `_rejected` logs what is ours)
            rejected = self._rejected(rpc, err)
            status, kind = rejected.status, rejected.kind
            _refuse(context, rejected)
            answer = message_class(f"{rpc}Response")()
        else:
            status, kind = 200, None
        finally:
            held.close()
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
                    **trace_field([value for name, value in context.invocation_metadata() if name == "traceparent"]),
                    **({"error": kind} if kind else {}),
                )
        return answer

    @staticmethod
    def _rejected(rpc: str, err: Exception) -> Rejected:
        rejected = as_rejected(err)
        if rejected is None:
            # Its text may name files of this machine: it goes to the log.
            logger.error("call failed rpc=%s", rpc, exc_info=err)
            rejected = Rejected(500, "the server failed on this call; its log says why", kind="internal")
        # It has the frames that it passed through, and these have it: a message would wait for the collector.
        err.__traceback__ = None
        return rejected

    def _check_key(self, rpc: str, metadata: Metadata) -> None:
        if self._keys is not None and rpc not in OPEN:
            sent = dict(metadata).get("authorization")
            self._keys.check(None if sent is None else sent.encode())

    async def _answer(self, rpc: str, request: bytes, context: Context, held: Held) -> Message:
        # Once more where a proxy of Serve's, which knows no keys, has received the message.
        self._check_key(rpc, context.invocation_metadata())
        limits = self._endpoint.limits
        limit = limits.max_request_bytes if rpc == "ModelInfer" else min(MAX_OPTIONS_BYTES, limits.max_request_bytes)
        if len(request) > limit:
            raise Rejected(413, f"the message may have at most {limit:,} bytes, got {len(request):,}")
        # As it came, parsed, and the images or numbers that are taken out of it.
        held.set(3 * len(request))
        if rpc == "ModelInfer":
            most_fields = FIELDS_AN_IMAGE * limits.max_images + FIELDS_BESIDE
            check_size(request, most_fields=most_fields, most_values=limits.max_values)
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


def _client(peer: str, forwarded: str | None) -> str:
    """Return the caller's address: a HAProxy of this machine says whose call it passes on; others might lie."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    is_here = address.removeprefix("::ffff:").startswith("127.") or address == "::1"
    return forwarded if forwarded and is_here else address


def _refusal(rejected: Rejected) -> Refusal:
    # A lone surrogate has no UTF-8 form, and gRPC wants one.
    details = str(rejected)[:_MAX_DETAILS].encode("utf-8", "replace").decode()
    # gRPC's own word for Retry-After; its clients wait as long where retries are on.
    metadata = tuple(
        ("grpc-retry-pushback-ms", str(int(value) * 1000)) for name, value in rejected.headers if name == b"retry-after"
    )
    return grpc.StatusCode[GRPC_CODES.get(rejected.status, "INTERNAL")], details, metadata


def _refuse(context: Context, rejected: Rejected) -> None:
    code, details, metadata = _refusal(rejected)
    context.set_code(code)
    context.set_details(details)
    if metadata:
        context.set_trailing_metadata(list(metadata))
