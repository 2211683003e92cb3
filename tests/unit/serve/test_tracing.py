"""Spans of real requests, over HTTP and gRPC, as a collector of OpenTelemetry receives them."""

from __future__ import annotations

import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from starlette.datastructures import Headers

from models.spec import Precision
from serve import tracing
from serve.model.batcher import Item
from serve.oip.grpc.messages import request_class
from tests.support.oip_server import OipServer, oip_server
from tests.support.otlp_receiver import Receiver, Span, otlp_receiver
from tests.support.tiny_model import colour_jpeg

RED = colour_jpeg("red")
SERVER, INTERNAL = 2, 1
STAGES = {"queue", "decode", "infer"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[OipServer]:
    with oip_server(tiny_model, Precision.FP32) as running:
        yield running


@pytest.fixture
def traced(receiver, monkeypatch) -> Iterator[Receiver]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    tracing.start("replica-1")
    yield receiver
    tracing.stop()


def new_parent(*, sampled: bool = True) -> tuple[str, str, str]:
    """Return a new trace, a span of it, and the header that names both."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-0{int(sampled)}"


def post(server: OipServer, body: bytes, kind: str = "image/jpeg", **headers: str) -> int:
    request = urllib.request.Request(
        f"http://{server.http}/v1/classify", body, {"Content-Type": kind, "x-forwarded-proto": "https", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as err:
        return err.code


def check_stages(request: Span, spans: dict[str, Span], *, images: int) -> None:
    for name in STAGES:
        span = spans[name]
        assert (span.parent, span.kind) == (request.id, INTERNAL)
        assert request.begun <= span.begun <= span.ended <= request.ended
        assert (span.about["shardlabel.model"], span.about["shardlabel.images"]) == ("tiny", images)
    assert spans["queue"].begun < spans["decode"].begun < spans["infer"].begun
    assert 1 <= spans["infer"].about["shardlabel.batch_size"] <= 8


def test_a_request_over_http_is_a_span_below_its_callers_with_its_stages(traced, server):
    trace, caller, header = new_parent()

    began = time.time()
    assert post(server, RED, traceparent=header) == 200

    spans = traced.of_trace(trace, 4)
    request = spans["POST /v1/classify"]
    assert (request.parent, request.kind, request.is_error) == (caller, SERVER, False)
    # The server's span ends once the answer is written, which the client may have read before.
    assert began <= request.begun < request.ended < time.time()
    assert request.about == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "url.scheme": "https",
        "shardlabel.model": "tiny",
        "shardlabel.images": 1,
    }
    assert (request.resource["service.name"], request.resource["service.instance.id"]) == ("shardlabel", "replica-1")
    check_stages(request, spans, images=1)


def test_a_call_of_grpc_likewise(traced, server):
    trace, caller, header = new_parent()
    message = request_class("ModelInfer")(
        model_name="tiny", inputs=[{"name": "image", "datatype": "BYTES", "shape": [2]}]
    )
    message.inputs[0].contents.bytes_contents.extend([RED, RED])

    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call(message.SerializeToString(), metadata=(("traceparent", header),), timeout=20)

    spans = traced.of_trace(trace, 4)
    request = spans["inference.GRPCInferenceService/ModelInfer"]
    assert (request.parent, request.kind) == (caller, SERVER)
    assert request.about["rpc.system.name"] == "grpc"
    assert request.about["rpc.response.status_code"] == "OK"
    check_stages(request, spans, images=2)


def test_of_several_images_a_stage_goes_from_the_first_to_the_last(traced, server):
    trace, _, header = new_parent()
    boundary = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = b"".join(boundary + RED + b"\r\n" for _ in range(20)) + b"--B--\r\n"

    assert post(server, body, "multipart/form-data; boundary=B", traceparent=header) == 200

    spans = traced.of_trace(trace, 4)
    check_stages(spans["POST /v1/classify"], spans, images=20)
    assert spans["infer"].about["shardlabel.batch_size"] == 8
    assert spans["decode"].ended > spans["infer"].begun, "the last batch was decoded when the first had run"


@pytest.mark.parametrize(
    ("kind", "status", "error", "others"),
    [("image/jpeg", 422, "undecodable", {"queue", "decode"}), ("text/plain", 415, "415", set())],
    ids=["undecodable", "not an image"],
)
def test_a_refused_request_says_what_was_wrong(traced, server, kind, status, error, others):
    trace, _, header = new_parent()

    assert post(server, b"no image", kind, traceparent=header) == status

    spans = traced.of_trace(trace, 1 + len(others))
    request = spans.pop("POST /v1/classify")
    assert request.about["http.response.status_code"] == status
    assert request.about["error.type"] == error
    assert not request.is_error, "by the conventions a server's span is an error from 500 on"
    assert set(spans) == others


def test_one_that_expired_in_the_queue_shows_that_it_waited(traced):
    trace, _, header = new_parent()

    with tracing.request(lambda: ("a/b", {}), Headers({"traceparent": header})):
        tracing.stages([Item(b"", 0.0, since=time.monotonic() - 0.5)], "tiny")
        tracing.answered(504, "deadline", {})

    spans = traced.of_trace(trace, 2)
    assert spans["a/b"].is_error
    assert spans["queue"].ended - spans["queue"].begun >= 0.5


def test_what_the_caller_does_not_sample_is_not_sent(traced, server):
    unsampled, _, header = new_parent(sampled=False)
    assert post(server, RED, traceparent=header) == 200
    sampled, _, header = new_parent()
    assert post(server, RED, traceparent=header) == 200

    traced.of_trace(sampled, 4)
    assert unsampled not in {span.trace for span in traced.spans}


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nothing-01"}], ids=["none", "malformed"])
def test_a_request_without_a_trace_begins_one(traced, server, headers):
    before = len(traced.spans)

    assert post(server, RED, **headers) == 200

    deadline = time.monotonic() + 15
    while len(traced.spans) < before + 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    new = traced.spans[before:]
    assert len({span.trace for span in new}) == 1
    assert [span.name for span in new if not span.parent] == ["POST /v1/classify"]


def test_without_the_variable_there_are_none(receiver, server):
    tracing.start("replica-1")
    trace, _, header = new_parent()

    assert post(server, RED, traceparent=header) == 200

    time.sleep(0.3)
    assert trace not in {span.trace for span in receiver.spans}


@pytest.mark.parametrize(
    ("environment", "missing", "says"),
    [
        ({}, True, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, True, "shardlabel[tracing]"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True, "shardlabel[tracing]"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, "got grpc"),
    ],
)
def test_a_variable_that_has_no_effect_is_told(monkeypatch, environment, missing, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.setattr(tracing, "find_spec", lambda name: None)

    told = tracing.problem()

    assert told is None if says is None else says in told
