"""grpc.health.v1, through a real gRPC server: what Kubernetes' probes and load balancers ask."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from serve.oip.grpc import service
from serve.oip.grpc.messages import answer_class, request_class
from tests.support.grpc_service import serving
from tests.support.oip_backend import FakeBackend
from tests.unit.serve.oip.test_grpc import Ingress

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def asked(name: str) -> bytes:
    return request_class("Check")(service=name).SerializeToString()


async def check(ingress: Ingress, content: bytes) -> int:
    async with serving(ingress) as channel:
        answer = await channel.unary_unary(CHECK, response_deserializer=answer_class("Check").FromString)(content)
        return answer.status


@pytest.mark.parametrize(("is_ready", "status"), [(True, SERVING), (False, NOT_SERVING)])
@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService", "grpc.health.v1.Health", "tiny", "tiny-tensor"])
def test_a_service_or_a_model_is_serving_where_it_is_ready(name, is_ready, status):
    assert asyncio.run(check(Ingress(FakeBackend(is_ready=is_ready)), asked(name))) == status


@pytest.mark.parametrize(("content", "code"), [(asked("nothing"), "NOT_FOUND"), (b"\xff", "INVALID_ARGUMENT")])
def test_what_is_not_there_is_an_error(content, code):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(check(Ingress(), content))

    assert caught.value.code().name == code


def test_a_probe_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "look", service.look)
    (tmp_path / "keys").write_text("long enough a key\n")
    ingress = Ingress(api_keys_file=tmp_path / "keys")
    ingress.start_grpc()

    assert asyncio.run(check(ingress, asked(""))) == SERVING


def watch_of(channel: grpc.aio.Channel, name: str):
    return channel.unary_stream(WATCH, response_deserializer=answer_class("Watch").FromString)(asked(name))


@pytest.mark.parametrize(
    ("name", "first", "then"), [("", NOT_SERVING, SERVING), ("nothing", SERVICE_UNKNOWN, SERVICE_UNKNOWN)]
)
def test_who_watches_is_told_now_and_again(name, first, then, monkeypatch):
    monkeypatch.setattr("serve.oip.grpc.ingress.WATCH_S", 0.05)
    backend = FakeBackend(is_ready=False)

    async def follow():
        async with serving(Ingress(backend)) as channel:
            call = watch_of(channel, name)
            before = (await call.read()).status
            backend.is_ready = True
            await asyncio.sleep(0.2)
            while (await asyncio.wait_for(call.read(), 5)).status != then:
                pass
            call.cancel()
            return before

    assert asyncio.run(follow()) == first


def test_watchers_are_bounded_and_leave_room_when_they_go(monkeypatch):
    monkeypatch.setitem(service.AT_ONCE, service.WATCH, 2)

    async def many():
        async with serving(Ingress()) as channel:
            calls = [watch_of(channel, "") for _ in range(2)]
            for call in calls:
                await call.read()
            one_more = await watch_of(channel, "").code()
            calls[0].cancel()
            await asyncio.sleep(0.1)
            again = watch_of(channel, "")
            answer = await again.read()
            for call in (again, *calls):
                call.cancel()
            return one_more, answer.status

    assert asyncio.run(many()) == (grpc.StatusCode.UNAVAILABLE, SERVING)
