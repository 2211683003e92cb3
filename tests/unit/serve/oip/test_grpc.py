"""The gRPC service: called with bytes, as Ray Serve calls it, and once through a real gRPC server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import ConfigError, DeadlineError, OverloadedError, UnknownModelError
from serve.config import ServeConfig
from serve.http.access_log import AccessLog
from serve.http.in_flight import Extras
from serve.http.keys import ApiKeys
from serve.metrics import ServeMetrics
from serve.model.models import Models
from serve.oip.endpoint import OPEN
from serve.oip.grpc.ingress import Methods
from serve.oip.grpc.messages import COMPILED, answer_class, request_class
from serve.oip.grpc.service import PATHS, add_to_server
from tests.support.grpc_service import HEALTH, RPCS, SERVICE
from tests.support.oip_backend import Client, FakeBackend, fake_spec
from tests.unit.serve.oip.test_infer import PIXELS, bytes_element
from tests.unit.serve.oip.test_routes import IMAGE_METADATA

Request = request_class("ModelInfer")


class Context:
    """What Ray Serve's context does."""

    def __init__(self, metadata=()) -> None:
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.trailing: list[tuple[str, str]] = []
        self._metadata = metadata
        self.address = "ipv4:127.0.0.1:50000"

    def set_code(self, code) -> None:
        self.code = code

    def set_details(self, details) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing) -> None:
        self.trailing = trailing

    def invocation_metadata(self):
        return self._metadata

    def peer(self) -> str:
        return self.address


class Ingress(Methods):
    """A deployment's class."""

    def __init__(self, backend=None, limits=None, models=None, extras=None, **config) -> None:
        self.backend = backend or FakeBackend()
        self.models = models or Models(self.backend)
        self.config = limits or ServeConfig(**config)
        keys = self.config.api_keys_file
        self.extras = extras or Extras(keys=None if keys is None else ApiKeys(keys))

    def call(self, rpc: str, message=None, metadata=()):
        content = message if isinstance(message, bytes) else (message or request_class(rpc)())
        content = content if isinstance(content, bytes) else content.SerializeToString()
        context = Context(metadata)
        answer = asyncio.run(getattr(self, rpc)(content, grpc_context=context))
        return answer_class(rpc).FromString(answer.SerializeToString()), context

    def infer(self, message):
        return self.call("ModelInfer", message)


def raw_images(*contents: bytes, **more):
    message = Request(model_name="tiny", **more)
    message.inputs.add(name="image", datatype="BYTES", shape=[len(contents), 1])
    message.raw_input_contents.append(b"".join(map(bytes_element, contents)))
    return message


def typed_images(*contents: bytes, **more):
    message = Request(model_name="tiny", **more)
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[len(contents)])
    tensor.contents.bytes_contents.extend(contents)
    return message


def want(message, name: str, **integers: int):
    output = message.outputs.add(name=name)
    for key, value in integers.items():
        output.parameters[key].int64_param = value
    return message


def test_server_and_model_are_live_ready_and_described():
    ingress = Ingress()
    ready = request_class("ModelReady")(name="tiny", version="1")
    described = request_class("ModelMetadata")(name="tiny")

    unknown = request_class("ModelReady")(name="nothing")

    assert ingress.call("ServerLive")[0].live
    assert ingress.call("ModelReady", unknown)[0].ready is False
    assert ingress.call("ServerReady")[0].ready
    assert ingress.call("ModelReady", ready)[0].ready
    server = ingress.call("ServerMetadata")[0]
    assert (server.name, "classification" in server.extensions) == ("shardlabel", True)
    model = ingress.call("ModelMetadata", described)[0]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("image", "BYTES", [-1])]
    assert [t.name for t in model.outputs] == [t["name"] for t in IMAGE_METADATA["outputs"]]
    assert (list(model.versions), model.platform) == (["1"], "onnxruntime_onnx")


def test_what_is_not_ready_says_so_without_an_error():
    ingress = Ingress(FakeBackend(is_ready=False))

    ready, context = ingress.call("ServerReady")

    assert (ready.ready, context.code) == (False, grpc.StatusCode.OK)
    assert ingress.call("ModelReady", request_class("ModelReady")(name="tiny"))[0].ready is False
    assert ingress.infer(raw_images(b"R"))[1].code is grpc.StatusCode.UNAVAILABLE


def test_configuration_statistics_and_index():
    ingress = Ingress()
    ingress.infer(raw_images(b"R", b"G"))

    config = ingress.call("ModelConfig", request_class("ModelConfig")(name="tiny-tensor"))[0].config
    stats = ingress.call("ModelStatistics", request_class("ModelStatistics")(name="tiny"))[0].model_stats
    index = ingress.call("RepositoryIndex")[0].models

    assert (config.name, config.max_batch_size, config.version_policy.latest.num_versions) == ("tiny-tensor", 64, 1)
    assert [(t.name, t.data_type, t.format, list(t.dims)) for t in config.input] == [("pixels", 11, 2, [3, 2, 2])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("scores", 11, [4])]
    assert [(s.name, s.inference_count, s.inference_stats.success.count) for s in stats] == [("tiny", 2, 1)]
    assert len(ingress.call("ModelStatistics")[0].model_stats) == 2
    assert [(m.name, m.state) for m in index] == [("tiny", "READY"), ("tiny-tensor", "READY")]


def test_raw_contents_in_give_raw_contents_out():
    answer, _ = Ingress().infer(want(want(raw_images(b"G", b"B", id="7"), "label_ids"), "labels"))

    assert (answer.id, answer.model_name, answer.model_version) == ("7", "tiny", "1")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("label_ids", "INT32", [2, 4]), ("labels", "BYTES", [2, 4]),
    ]  # fmt: skip
    assert answer.raw_output_contents[0] == np.array([1, 0, 2, 3, 2, 0, 1, 3], "<i4").tobytes()
    assert answer.raw_output_contents[1].startswith(bytes_element(b"green") + bytes_element(b"red"))


def test_typed_contents_in_give_typed_contents_out():
    answer, _ = Ingress().infer(typed_images(b"G"))

    assert not answer.raw_output_contents
    probabilities, ids, _, labels = (output.contents for output in answer.outputs)
    assert list(probabilities.fp32_contents) == pytest.approx([0.1, 0.7, 0.1, 0.1])
    assert list(ids.int_contents) == [1, 0, 2, 3]
    assert list(labels.bytes_contents) == [b"green", b"red", b"blue", b"no colour at all"]


def test_the_parameter_binary_data_output_decides_where_it_is_given():
    message = typed_images(b"G")
    message.parameters["binary_data_output"].bool_param = True

    answer, _ = Ingress().infer(message)

    assert len(answer.raw_output_contents) == 4


def test_classification_and_parameters():
    ingress = Ingress()
    message = want(raw_images(b"B"), "probabilities", classification=2)
    message.parameters["timeout"].int64_param = 500_000
    message.parameters["priority"].uint64_param = 1
    message.parameters["top_k"].int64_param = 1

    answer, _ = ingress.infer(message)

    assert answer.raw_output_contents[0] == bytes_element(b"0.700000:2:blue") + bytes_element(b"0.100000:0:red")
    assert ingress.backend.calls[0]["top_k"] == 2


def test_every_output_can_be_given_as_classes():
    names = ["probabilities", "label_ids", "scores", "labels"]
    message = raw_images(b"G", b"B")
    for name in names:
        want(message, name, classification=1)

    answer, _ = Ingress().infer(message)

    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [(name, "BYTES", [2, 1]) for name in names]
    classes = bytes_element(b"0.700000:1:green") + bytes_element(b"0.700000:2:blue")
    assert list(answer.raw_output_contents) == [classes] * 4


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_the_models_own_tensor(typed):
    message = Request(model_name="tiny-tensor")
    tensor = message.inputs.add(name="pixels", datatype="FP32", shape=PIXELS.shape)
    if typed:
        tensor.contents.fp32_contents.extend(PIXELS.ravel().tolist())
    else:
        message.raw_input_contents.append(PIXELS.tobytes())

    answer, _ = Ingress().infer(message)

    expected = [1.5, 5.5, 9.5, 0, 13.5, 17.5, 21.5, 0]
    if typed:
        assert list(answer.outputs[0].contents.fp32_contents) == expected
    else:
        assert answer.raw_output_contents[0] == np.array(expected, "<f4").tobytes()


def two_inputs():
    message = raw_images(b"R")
    message.inputs.add(name="image", datatype="BYTES", shape=[1])
    return message


def both_contents():
    message = raw_images(b"R")
    message.inputs[0].contents.bytes_contents.append(b"R")
    return message


def wrong_contents():
    message = typed_images(b"R")
    message.inputs[0].contents.fp32_contents.append(1)
    return message


def half_floats():
    message = Request(model_name="tiny-tensor")
    message.inputs.add(name="pixels", datatype="FP16", shape=[1, 3, 2, 2])
    return message


def no_value():
    message = raw_images(b"R")
    message.parameters["top_k"].SetInParent()
    return message


def with_model(name: str, version: str = ""):
    message = raw_images(b"R")
    message.model_name, message.model_version = name, version
    return message


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (with_model("nothing"), "NOT_FOUND", "no model 'nothing'"),
        (with_model("tiny", "9"), "NOT_FOUND", "version"),
        (b"\xff\xff", "INVALID_ARGUMENT", "not a ModelInferRequest"),
        (Request(model_name="tiny"), "INVALID_ARGUMENT", "at least 1 item"),
        (two_inputs(), "INVALID_ARGUMENT", "an entry per input, 2, got 1"),
        (both_contents(), "INVALID_ARGUMENT", "both contents and raw_input_contents"),
        (wrong_contents(), "INVALID_ARGUMENT", "must be in bytes_contents"),
        (half_floats(), "INVALID_ARGUMENT", "FP16"),
        (no_value(), "INVALID_ARGUMENT", "has no value"),
        (want(raw_images(b"R"), "nothing"), "INVALID_ARGUMENT", "has the outputs"),
        (raw_images(b"R", b"?"), "INVALID_ARGUMENT", "image 1: cannot be read"),
        (raw_images(b"L"), "RESOURCE_EXHAUSTED", "image 0"),
        (raw_images(b"R" * 3000), "RESOURCE_EXHAUSTED", "at most 2,000 bytes"),
        (raw_images(*[b"R"] * 5), "RESOURCE_EXHAUSTED", "at most 4 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_have_a_status_and_a_reason(message, code, says):
    ingress = Ingress(limits=ServeConfig(max_request_bytes=2000, max_images=4))

    _, context = ingress.infer(message)

    assert context.code is grpc.StatusCode[code]
    assert says in context.details
    assert ingress.infer(raw_images(b"R"))[1].code is grpc.StatusCode.OK


def test_overload_and_deadline():
    full = Ingress(FakeBackend(raises=OverloadedError("the queue is full", retry_after_s=2.5)))
    late = Ingress(FakeBackend(raises=DeadlineError("too late")))

    _, context = full.infer(raw_images(b"R"))

    assert (context.code, context.details) == (grpc.StatusCode.UNAVAILABLE, "the queue is full")
    assert context.trailing == [("grpc-retry-pushback-ms", "3000")]
    assert late.infer(raw_images(b"R"))[1].code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_fault_of_ours_is_internal_and_keeps_its_text(caplog):
    ingress = Ingress(FakeBackend(raises=RuntimeError("/secret/path")))

    _, context = ingress.infer(raw_images(b"R"))

    assert context.code is grpc.StatusCode.INTERNAL
    assert "secret" not in context.details
    assert "secret" in caplog.text


def test_keys_are_asked_for_as_over_http(tmp_path):
    (tmp_path / "keys").write_text("long enough a key\n")
    ingress = Ingress(api_keys_file=tmp_path / "keys")

    codes = {rpc: ingress.call(rpc)[1].code.name for rpc in RPCS}
    right = ingress.call("ServerMetadata", metadata=[("authorization", "Bearer long enough a key")])
    wrong = ingress.call("ServerMetadata", metadata=[("authorization", "Bearer another key")])

    assert codes == {rpc: "OK" if rpc in OPEN else "UNAUTHENTICATED" for rpc in RPCS}
    assert right[1].code is grpc.StatusCode.OK
    assert wrong[1].code is grpc.StatusCode.UNAUTHENTICATED


def test_calls_are_counted_beside_those_over_http():
    ingress = Ingress()
    ingress.extras = Extras(metrics=ServeMetrics("tiny", "a"))

    ingress.infer(raw_images(b"R", b"G"))
    ingress.infer(raw_images(b"?"))

    text = ingress.extras.metrics.render().decode()
    assert 'requests_total{model="tiny",replica="a",route="grpc/ModelInfer",status="200"} 1.0' in text
    assert 'errors_total{kind="undecodable",model="tiny",replica="a",route="grpc/ModelInfer"} 1.0' in text
    assert 'in_flight{model="tiny",replica="a"} 0.0' in text
    (stats,) = Client(ingress.backend)("GET", "/v2/models/tiny/stats").json["model_stats"]
    assert (stats["inference_count"], stats["inference_stats"]["fail"]["count"]) == (2, 1)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=100), st.data()))
def test_any_bytes_get_a_status(given_bytes):
    content = given_bytes
    if not isinstance(content, bytes):
        good = bytearray(raw_images(b"R", b"G", id="7").SerializeToString())
        for _ in range(given_bytes.draw(st.integers(1, 3))):
            good[given_bytes.draw(st.integers(0, len(good) - 1))] = given_bytes.draw(st.integers(0, 255))
        content = bytes(good)
    ingress = Ingress(limits=ServeConfig(max_request_bytes=2000, max_images=4))

    for rpc in RPCS:
        _, context = ingress.call(rpc, content)
        # Models are not loaded here by whoever asks.
        refused = ("UNAVAILABLE",) if rpc.startswith("RepositoryModel") else ("OK", "NOT_FOUND", "UNIMPLEMENTED")
        assert context.code.name in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", *refused)


def test_a_real_server_speaks_it():
    async def talk() -> tuple[bool, bytes, grpc.StatusCode]:
        server = grpc.aio.server()
        ingress = Ingress()

        class Servicer:
            def __getattr__(self, rpc):
                async def method(request, context):
                    return await getattr(ingress, rpc)(request, context)

                return method

        add_to_server(Servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                live = await channel.unary_unary(f"/{SERVICE}/ServerLive")(b"")
                answer = await channel.unary_unary(f"/{SERVICE}/ModelInfer")(raw_images(b"R").SerializeToString())
                try:
                    await channel.unary_unary(f"/{SERVICE}/TraceSetting")(b"")
                except grpc.aio.AioRpcError as err:
                    missing = err.code()
        finally:
            await server.stop(None)
        return live, answer, missing

    live, answer, missing = asyncio.run(talk())

    assert answer_class("ServerLive").FromString(live).live
    assert answer_class("ModelInfer").FromString(answer).model_name == "tiny"
    assert missing is grpc.StatusCode.UNIMPLEMENTED


def test_the_messages_leave_the_default_pool_alone():
    # tritonclient and kserve register the same full names there; whoever comes second would fail.
    from google.protobuf import descriptor_pool

    services = [
        request_class(rpc).DESCRIPTOR.file.services_by_name[name.rpartition(".")[2]]
        for rpc, name in (("ModelInfer", SERVICE), ("Check", HEALTH))
    ]

    methods = [method for service in services for method in service.methods]
    assert set(PATHS.values()) == {
        *(f"/{SERVICE}/{rpc}" for rpc in (*RPCS, "ModelStreamInfer")),
        *(f"/{HEALTH}/{rpc}" for rpc in ("Check", "Watch")),
    }
    for method in methods:
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindMessageTypeByName(method.input_type.full_name)


def test_the_compiled_messages_are_what_the_proto_file_says(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed (make test installs it)")
    compiled = tmp_path / COMPILED.name

    files = [str(COMPILED.with_name(name)) for name in ("inference.proto", "health.proto")]
    status = protoc.main(["", f"--proto_path={COMPILED.parent}", f"--descriptor_set_out={compiled}", *files])

    assert status == 0
    assert compiled.read_bytes() == COMPILED.read_bytes(), "make proto"


def test_what_a_proxy_imports_is_light():
    code = "import sys, serve.oip.grpc.service; sys.exit('numpy' in sys.modules or 'models' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("ipv4:127.0.0.1:5", "10.1.2.3", "10.1.2.3"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", "10.1.2.3", "10.1.2.3"),
        ("ipv6:%5B::1%5D:5", None, "::1"),
        ("ipv4:10.9.9.9:5", "1.2.3.4", "10.9.9.9"),
    ],
)
def test_the_access_log_has_a_line_per_call(tmp_path, peer, forwarded, client):
    log = AccessLog(str(tmp_path / "log"))
    ingress = Ingress(extras=Extras(access_log=log))
    trace = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    metadata = [("x-request-id", "r7"), trace, *([("x-forwarded-for", forwarded)] if forwarded else [])]
    context = Context(metadata)
    context.address = peer

    asyncio.run(ingress.ServerLive(b"", context))
    asyncio.run(ingress.ModelInfer(b"\xff", context))
    log.close()
    live, broken = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())

    assert (live["method"], live["path"], live["status"]) == ("gRPC", "/inference.GRPCInferenceService/ServerLive", 200)
    assert (live["client"], live["request_id"], live["bytes"]) == (client, "r7", 0)
    assert live["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (broken["status"], broken["bytes"], "error" in broken) == (400, 1, True)


class Control:
    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.error = error

    async def load(self, name: str) -> None:
        self.calls.append(("load", name))
        if self.error is not None:
            raise self.error

    async def unload(self, name: str) -> None:
        self.calls.append(("unload", name))
        if self.error is not None:
            raise self.error


def test_models_are_loaded_and_unloaded_where_callers_may():
    ingress = Ingress()
    ingress.extras = Extras(control=Control())
    load, unload = (request_class(f"RepositoryModel{what}")(model_name="m") for what in ("Load", "Unload"))

    codes = [ingress.call("RepositoryModelLoad", load)[1].code, ingress.call("RepositoryModelUnload", unload)[1].code]
    load.parameters["config"].string_param = "{}"
    _, refused = ingress.call("RepositoryModelLoad", load)

    assert codes == [grpc.StatusCode.OK] * 2
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert ingress.extras.control.calls == [("load", "m"), ("unload", "m")]


@pytest.mark.parametrize(
    ("error", "code"), [(UnknownModelError("none"), "NOT_FOUND"), (ConfigError("broken file"), "INVALID_ARGUMENT")]
)
@pytest.mark.parametrize("what", ["Load", "Unload"])
def test_what_cannot_be_loaded_or_unloaded_says_why(what, error, code):
    ingress = Ingress()
    ingress.extras = Extras(control=Control(error))

    rpc = f"RepositoryModel{what}"
    _, context = ingress.call(rpc, request_class(rpc)(model_name="m"))

    assert (context.code.name, context.details) == (code, str(error))


def test_each_call_reaches_the_model_that_it_names():
    backends = [FakeBackend(fake_spec(name)) for name in ("one", "tiny")]
    ingress = Ingress(models=Models(*backends))

    _, context = ingress.infer(raw_images(b"R"))
    ready, _ = ingress.call("ModelReady", request_class("ModelReady")(name="one-tensor"))

    assert context.code is grpc.StatusCode.OK
    assert [len(backend.calls) for backend in backends] == [0, 1]
    assert ready.ready
