"""ModelStreamInfer, through a real gRPC server: one answer per request, in order; what is wrong is told in the answer."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from models.errors import OverloadedError
from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.bodies import BodyMemory
from serve.http.in_flight import Extras
from serve.metrics import ServeMetrics
from serve.oip.grpc import service
from serve.oip.grpc.messages import answer_class
from serve.oip.grpc.service import AT_ONCE, STREAM, STREAM_IN_FLIGHT
from tests.support.grpc_service import SERVICE, serving
from tests.support.oip_backend import FakeBackend
from tests.unit.serve.oip.test_grpc import Context, Ingress, raw_images, with_model

PATH = f"/{SERVICE}/ModelStreamInfer"
Answer = answer_class("ModelStreamInfer")


class SlowBackend(FakeBackend):
    """Takes as many hundredths of a second as the image has bytes."""

    most_at_once = 0
    at_once = 0
    cancelled = 0

    async def label(self, images, **more):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(len(images[0]) / 100)
            return await super().label(images, **more)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1


def stream_of(channel: grpc.aio.Channel, **more):
    return channel.stream_stream(PATH, response_deserializer=Answer.FromString)(**more)


async def ask(ingress: Ingress, *messages, **more) -> list:
    """Send all at once, and return the answers."""
    async with serving(ingress) as channel:
        call = stream_of(channel, **more)
        for message in messages:
            await call.write(message if isinstance(message, bytes) else message.SerializeToString())
        await call.done_writing()
        return [answer async for answer in call]


def test_each_request_has_one_answer_in_the_order_they_came():
    backend = SlowBackend()
    images = [b"R" * 20, b"G", b"B" * 9, b"R"]

    answers = asyncio.run(ask(Ingress(backend), *[raw_images(image, id=str(n)) for n, image in enumerate(images)]))

    responses = [answer.infer_response for answer in answers]
    assert [response.id for response in responses] == ["0", "1", "2", "3"]
    assert [response.raw_output_contents[1][:4] for response in responses] == [
        bytes([label, 0, 0, 0]) for label in (0, 1, 2, 0)
    ]
    assert {answer.error_message for answer in answers} == {""}
    assert all(response.parameters["triton_final_response"].bool_param for response in responses)
    assert backend.most_at_once == 4


def test_what_is_wrong_with_a_request_is_its_answer_and_the_stream_goes_on():
    limits = ServeConfig(max_request_bytes=2000, max_images=4)
    wrong = [
        (raw_images(b"R", b"?", id="b"), "image 1: cannot be read", "b"),
        (with_model("nothing"), "no model 'nothing'", ""),
        (b"\xff\xff", "not a ModelInferRequest", ""),
        (raw_images(b"R" * 3000, id="large"), "at most 2,000 bytes", ""),
        (raw_images(*[b"R"] * 5, id="many"), "at most 4 images", "many"),
    ]

    answers = asyncio.run(
        ask(Ingress(limits=limits), *[message for message, _, _ in wrong], raw_images(b"G", id="good"))
    )

    for answer, (_, says, id) in zip(answers, wrong, strict=False):
        assert says in answer.error_message
        assert answer.infer_response.id == id
        assert not answer.infer_response.outputs
    assert (answers[-1].error_message, answers[-1].infer_response.id) == ("", "good")


def test_a_fault_of_ours_keeps_its_text(caplog):
    (answer,) = asyncio.run(ask(Ingress(FakeBackend(raises=RuntimeError("/secret/path"))), raw_images(b"R")))

    assert answer.error_message == "internal error; the server's log says why"
    assert "secret" in caplog.text


def test_a_stream_has_no_more_in_flight_than_it_may():
    backend = SlowBackend()

    answers = asyncio.run(ask(Ingress(backend), *[raw_images(b"R" * 5)] * (3 * STREAM_IN_FLIGHT)))

    assert len(answers) == 3 * STREAM_IN_FLIGHT
    assert backend.most_at_once == STREAM_IN_FLIGHT


def test_bodies_of_a_stream_share_the_budget_and_give_it_back():
    memory = BodyMemory(1000)
    ingress = Ingress(extras=Extras(memory=memory))

    large, small = asyncio.run(ask(ingress, raw_images(b"R" * 500), raw_images(b"R")))

    assert "max_body_memory is 1,000" in large.error_message
    assert small.error_message == ""
    assert memory.used == 0


def test_a_full_queue_refuses_requests_before_they_are_run(monkeypatch):
    monkeypatch.setattr(service, "look", lambda rpc, metadata: None)
    backend = FakeBackend(full=OverloadedError("overloaded", retry_after_s=3.0))
    ingress = Ingress(backend)

    (answer,) = asyncio.run(ask(ingress, raw_images(b"R")))

    assert (answer.error_message, backend.calls) == ("overloaded", [])


@pytest.mark.parametrize("looked_at", [True, False], ids=["at the head", "behind a proxy"])
def test_a_stream_without_its_key_is_refused(tmp_path, monkeypatch, looked_at):
    monkeypatch.setattr(service, "look", service.look)
    (tmp_path / "keys").write_text("long enough a key\n")
    ingress = Ingress(api_keys_file=tmp_path / "keys")
    if looked_at:
        ingress.start_grpc()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(ask(ingress, raw_images(b"R")))
    (answer,) = asyncio.run(ask(ingress, raw_images(b"R"), metadata=(("authorization", "Bearer long enough a key"),)))

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert answer.infer_response.model_name == "tiny"


def test_a_key_that_is_withdrawn_ends_what_its_streams_may_do(tmp_path, monkeypatch):
    monkeypatch.setattr("serve.http.keys.RELOAD_S", 0.0)
    (tmp_path / "keys").write_text("long enough a key\n")
    ingress = Ingress(api_keys_file=tmp_path / "keys")

    async def withdraw():
        async with serving(ingress) as channel:
            call = stream_of(channel, metadata=(("authorization", "Bearer long enough a key"),))
            answers = []
            for _ in range(2):
                await call.write(raw_images(b"R").SerializeToString())
                answers.append(await call.read())
                (tmp_path / "keys").write_text("another one that is longer\n")
            call.cancel()
            return answers

    before, after = asyncio.run(withdraw())

    assert (before.error_message, after.error_message) == ("", "the key is not known here")


def test_a_stream_that_asks_nothing_is_ended_and_told(monkeypatch):
    monkeypatch.setattr(service, "STREAM_IDLE_S", 0.2)

    async def idle():
        async with serving(Ingress()) as channel:
            call = stream_of(channel)
            await call.write(raw_images(b"R").SerializeToString())
            answer = await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            return answer, caught.value

    answer, err = asyncio.run(idle())

    assert answer.error_message == ""
    assert err.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no request for 0.2 s" in err.details()


def test_there_are_no_more_streams_than_may_be_and_each_gives_its_place_back():
    async def many():
        async with serving(Ingress()) as channel:
            calls = [stream_of(channel) for _ in range(AT_ONCE[STREAM])]
            for call in calls:
                await call.write(raw_images(b"R").SerializeToString())
                await call.read()
            one_more = await stream_of(channel).code()
            calls[0].cancel()
            await calls[1].done_writing()
            await calls[1].read()
            await asyncio.sleep(0.1)
            again = stream_of(channel)
            await again.write(raw_images(b"R").SerializeToString())
            answer = await again.read()
            for call in (again, *calls):
                call.cancel()
            return one_more, answer

    one_more, answer = asyncio.run(many())

    assert one_more is grpc.StatusCode.UNAVAILABLE
    assert answer.infer_response.model_name == "tiny"


def test_what_nobody_waits_for_any_more_is_cancelled_and_given_back():
    backend, memory = SlowBackend(), BodyMemory(2**20)
    ingress = Ingress(backend, extras=Extras(memory=memory))

    async def leave():
        async with serving(ingress) as channel:
            call = stream_of(channel)
            for _ in range(3):
                await call.write(raw_images(b"R" * 1000).SerializeToString())
            while backend.at_once < 3:
                await asyncio.sleep(0.01)
            held = memory.used
            call.cancel()
            await asyncio.sleep(0.2)
            return held, memory.used

    held, after = asyncio.run(leave())

    assert (held > 9000, after, backend.cancelled) == (True, 0, 3)


def test_each_request_is_counted_and_has_its_line_in_the_log(tmp_path):
    metrics, log = ServeMetrics("tiny", "a"), AccessLog(str(tmp_path / "log"))
    ingress = Ingress(extras=Extras(metrics=metrics, access_log=log))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    async def talk():
        async def messages():
            yield raw_images(b"R").SerializeToString()
            yield b"\xff"

        metadata = [("x-request-id", "r7"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]
        return [answer async for answer in ingress.ModelStreamInfer(messages(), Context(metadata))]

    assert len(asyncio.run(talk())) == 2
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    good, bad = sorted(lines, key=lambda line: line["status"])
    text = metrics.render().decode()

    assert (good["path"], good["status"], good["trace_id"]) == (PATH, 200, trace)
    assert (bad["status"], bad["request_id"], bad["error"]) == (400, "r7", "400")
    assert 'route="grpc/ModelStreamInfer",status="200"} 1.0' in text
    assert 'route="grpc/ModelStreamInfer",status="400"} 1.0' in text
