"""Hostile calls of gRPC: refused before their messages are received, or before these are parsed."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from models.errors import OverloadedError
from serve.http.bodies import BodyMemory, Held
from serve.http.in_flight import Extras
from serve.oip.grpc import service
from serve.oip.grpc.ingress import Methods
from serve.oip.grpc.service import add_to_server
from tests.support.grpc_service import SERVICE
from tests.support.hostile_requests import GRPC_CORPUS, MODEL
from tests.support.oip_backend import FakeBackend
from tests.unit.serve.oip.test_grpc import Context, Ingress


@pytest.mark.parametrize("name", GRPC_CORPUS)
def test_a_hostile_message_is_refused_before_it_is_parsed(name, monkeypatch):
    message = GRPC_CORPUS[name]()
    ingress = Ingress(model=MODEL)
    monkeypatch.setattr("serve.oip.grpc.ingress.request_class", _Unparsed)
    context = Context()

    asyncio.run(ingress.ModelInfer(message, grpc_context=context))

    assert context.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)


class _Unparsed:
    def __init__(self, rpc):
        assert rpc == "ModelInfer"

    def FromString(self, content):  # noqa: N802 (protobuf's name)
        raise AssertionError("it was parsed")


class _Servicer:
    """gRPC's names for the arguments, where Ray Serve has its own."""

    def __init__(self, ingress: Methods, seen: list[int]) -> None:
        self._ingress, self._seen = ingress, seen

    def __getattr__(self, rpc: str):
        async def call(message: bytes, context: object) -> object:
            self._seen.append(len(message))
            return await getattr(self._ingress, rpc)(message, grpc_context=context)

        return call


async def _call(ingress: Methods, content: bytes, metadata=()) -> tuple[grpc.StatusCode, list[int]]:
    """Call ModelInfer through a real server; return the code, and the messages that were received."""
    seen: list[int] = []
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_to_server(_Servicer(ingress, seen), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(content, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as err:
        return err.code(), seen
    finally:
        await server.stop(0)
    return grpc.StatusCode.OK, seen


def test_a_call_without_a_key_is_refused_before_its_message_is_received(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "look", service.look)
    (tmp_path / "keys").write_text("long enough a key\n")
    ingress = Ingress(api_keys_file=tmp_path / "keys")
    ingress.start_grpc()
    right = [("authorization", "Bearer long enough a key")]

    without = asyncio.run(_call(ingress, bytes(10 * 2**20)))
    with_one = asyncio.run(_call(ingress, b"", right))

    assert without == (grpc.StatusCode.UNAUTHENTICATED, [])
    assert with_one == (grpc.StatusCode.NOT_FOUND, [0])


def test_a_call_asks_the_queue_before_its_message_is_received(monkeypatch):
    monkeypatch.setattr(service, "look", service.look)
    ingress = Ingress(FakeBackend(full=OverloadedError("overloaded", retry_after_s=3.0)))
    ingress.start_grpc()

    assert asyncio.run(_call(ingress, bytes(10 * 2**20))) == (grpc.StatusCode.UNAVAILABLE, [])


def test_messages_of_grpc_share_the_budget_of_bodies():
    memory = BodyMemory(1000)
    Held(memory).set(900)
    ingress = Ingress(extras=Extras(memory=memory))
    context = Context()

    asyncio.run(ingress.ModelInfer(bytes(50), context))

    assert context.code is grpc.StatusCode.UNAVAILABLE
    assert dict(context.trailing) == {"grpc-retry-pushback-ms": "1000"}
