"""Unmodified clients of other makers, against the real application: every call that they have."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.spec import Precision
from tests.support.certificates import write_certificate
from tests.support.oip_server import OipServer, oip_server
from tests.support.otlp_receiver import Receiver, otlp_receiver
from tests.support.serve_process import ServeProcess, serving
from tests.support.tiny_model import SIDE, colour_jpeg

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

ROOT = Path(__file__).parents[2]
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
RED, GREEN = colour_jpeg("red"), colour_jpeg("green")


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[OipServer]:
    with oip_server(tiny_model, Precision.FP32, max_images=8) as running:
        yield running


@pytest.fixture
def client(server: OipServer):
    with triton.InferenceServerClient(server.http) as opened:
        yield opened


def images(*contents: bytes, binary: bool = True) -> triton.InferInput:
    values = contents if binary else [base64.b64encode(content) for content in contents]
    array = np.array(values, dtype=np.object_).reshape(-1, 1)
    tensor = triton.InferInput("image", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def texts(array: np.ndarray) -> list[str]:
    return [element if isinstance(element, str) else element.decode() for element in array.ravel()]


# tritonclient.http


def test_http_health(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.model)
    assert client.is_model_ready(f"{server.model}-tensor", "1")
    assert not client.is_model_ready("nothing")
    assert not client.is_model_ready(server.model, "2")


def test_http_metadata_and_configuration(client, server):
    assert client.get_server_metadata()["name"] == "shardlabel"
    for version in ("", "1"):
        assert client.get_model_metadata(server.model, version)["inputs"][0]["name"] == "image"
        assert client.get_model_config(server.model, version)["max_batch_size"] == 8
    metadata = client.get_model_metadata(f"{server.model}-tensor")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, SIDE, SIDE]}]
    assert metadata["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]


def test_http_statistics_and_repository(client, server):
    before = client.get_inference_statistics(server.model)["model_stats"][0]["inference_count"]
    client.infer(server.model, [images(RED, GREEN)])

    assert client.get_inference_statistics(server.model, "1")["model_stats"][0]["inference_count"] == before + 2
    assert len(client.get_inference_statistics()["model_stats"]) == 2
    assert {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()} == {
        (server.model, "READY"), (f"{server.model}-tensor", "READY"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        lambda client, model: client.unload_model(model),
        lambda client, model: client.load_model(model),
        lambda client, _: client.get_trace_settings(),
        lambda client, model: client.update_trace_settings(model, {"trace_level": "OFF"}),
        lambda client, _: client.get_log_settings(),
        lambda client, _: client.update_log_settings({"log_info": False}),
        lambda client, _: client.get_system_shared_memory_status(),
        lambda client, _: client.register_system_shared_memory("r", "/r", 8),
        lambda client, _: client.unregister_system_shared_memory(),
        lambda client, _: client.get_cuda_shared_memory_status(),
    ],
)
def test_http_extensions_that_are_not_there_say_so(call, client, server):
    with pytest.raises(InferenceServerException) as caught:
        call(client, server.model)

    assert caught.value.status() in ("404", "503")
    assert len(caught.value.message()) > 20


@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "json out"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "json in"])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_http_infer_in_every_form(binary_in, binary_out, packed, client, server):
    names = ["probabilities", "label_ids", "scores", "labels"]

    result = client.infer(
        server.model,
        [images(RED, GREEN, binary=binary_in)],
        outputs=[triton.InferRequestedOutput(name, binary_data=binary_out) for name in names],
        request_id="42",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )

    assert result.get_response()["id"] == "42"
    assert result.as_numpy("label_ids")[:, 0].tolist() == [0, 1]
    assert texts(result.as_numpy("labels"))[::3] == ["red", "green"]
    assert result.as_numpy("probabilities").shape == (2, 3)
    assert result.as_numpy("probabilities").dtype == np.float32
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(result.as_numpy("scores"), -np.sort(-result.as_numpy("probabilities"), axis=1))


def test_http_infer_without_outputs_gives_all_of_them_binary(client, server):
    result = client.infer(server.model, [images(GREEN)], parameters={"top_k": 2}, timeout=5_000_000, priority=1)

    assert texts(result.as_numpy("labels"))[0] == "green"
    assert result.as_numpy("label_ids").shape == (1, 2)
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])


def test_http_classification_of_every_output(client, server):
    names = [output["name"] for output in client.get_model_metadata(server.model)["outputs"]]
    wanted = [triton.InferRequestedOutput(name, class_count=2) for name in names]

    result = client.infer(server.model, [images(RED, GREEN)], outputs=wanted)

    for name in names:
        assert result.as_numpy(name).shape == (2, 2)
        assert [text.split(":")[1:] for text in texts(result.as_numpy(name))[::2]] == [["0", "red"], ["1", "green"]]


def test_http_classification(client, server):
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)

    (best, second) = texts(client.infer(server.model, [images(GREEN)], outputs=[wanted]).as_numpy("probabilities"))

    value, index, label = best.split(":")
    assert (index, label) == ("1", "green")
    assert 0.9 < float(value) <= 1
    assert second.split(":")[1] in "02"


def test_http_the_models_own_tensor(client, server):
    pixels = np.zeros((2, 3, SIDE, SIDE), np.float32)
    pixels[0, 1] = 0.5
    pixels[1, 2] = 0.25
    tensor = triton.InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)

    own = client.infer(f"{server.model}-tensor", [tensor]).as_numpy("scores")
    wanted = triton.InferRequestedOutput("scores", class_count=1)
    classes = client.infer(f"{server.model}-tensor", [tensor], outputs=[wanted]).as_numpy("scores")

    np.testing.assert_allclose(own, [[0, 5, 0], [0, 0, 2.5]], atol=1e-6)
    assert texts(classes) == ["5.000000:1:green", "2.500000:2:blue"]


def test_http_many_requests_at_once(server):
    with triton.InferenceServerClient(server.http, concurrency=8) as client:
        pending = [client.async_infer(server.model, [images(RED if i % 2 else GREEN)]) for i in range(24)]
        ids = [int(request.get_result().as_numpy("label_ids")[0, 0]) for request in pending]

    assert ids == [1, 0] * 12


def test_http_asynchronous_client(server):
    from tritonclient.http.aio import InferenceServerClient

    async def talk():
        async with InferenceServerClient(server.http) as client:
            answers = [
                client.infer(server.model, [images(RED if i % 2 else GREEN)], response_compression_algorithm=packed)
                for i, packed in enumerate([None, "gzip", "deflate", None])
            ]
            results = await asyncio.gather(*answers)
            return await client.is_server_ready(), [int(r.as_numpy("label_ids")[0, 0]) for r in results]

    assert asyncio.run(talk()) == (True, [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("model", "version", "tensor", "status", "says"),
    [
        ("nothing", "", images(RED), "404", "no model 'nothing'"),
        ("tiny", "9", images(RED), "404", "version"),
        ("tiny", "", images(RED, RED[:60]), "422", "image 1"),
        ("tiny", "", images(b"no image at all"), "422", "image 0"),
        ("tiny", "", images(b""), "400", "image 0"),
        ("tiny", "", images(*[RED] * 9), "413", "at most 8 images"),
        ("tiny-tensor", "", images(RED), "400", "'pixels'"),
    ],
)
def test_http_errors_have_a_status_and_a_reason(model, version, tensor, status, says, client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [tensor], model_version=version)

    assert caught.value.status() == status
    assert says in caught.value.message()


def test_http_a_timeout_that_passed_is_504(client, server):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(server.model, [images(RED)], timeout=1)

    assert caught.value.status() == "504"


def test_http_a_jpeg_as_it_is(client, server):
    # What `curl --data-binary @cat.jpg -H 'Inference-Header-Content-Length: 0'` sends.
    import http.client

    connection = http.client.HTTPConnection(server.http)
    connection.request("POST", f"/v2/models/{server.model}/infer", GREEN, {"Inference-Header-Content-Length": "0"})
    answer = connection.getresponse()
    result = triton.InferResult.from_response_body(
        answer.read(), header_length=int(answer.headers["Inference-Header-Content-Length"])
    )

    assert texts(result.as_numpy("labels"))[0] == "green"


# tritonclient.grpc and kserve, in their own environment


def run_client(script: str, *arguments: object, **environment: str) -> dict[str, object]:
    if not CLIENTS_PYTHON.is_file():
        pytest.skip("the clients are not installed: make .venv-clients/.installed")
    done = subprocess.run(
        [CLIENTS_PYTHON, ROOT / "tests" / "clients" / script, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def red_jpeg(tmp_path: Path) -> Path:
    path = tmp_path / "red.jpg"
    path.write_bytes(RED)
    return path


def check_triton_grpc(got: dict, *, model: str, classes: int, first: str, first_id: int) -> None:
    assert (got["live"], got["ready"], got["model_ready"], got["unknown_ready"]) == (True, True, True, False)
    assert got["server"]["name"] == "shardlabel"
    assert got["model"]["name"] == model
    assert got["config"]["name"] == f"{model}-tensor"
    assert got["config"]["input"][0]["dataType"] == "TYPE_FP32"
    assert got["config"]["input"][0]["format"] == "FORMAT_NCHW"
    assert got["images"] >= 4
    assert got["all_stats"] == 2
    assert got["index"] == [[model, "READY"], [f"{model}-tensor", "READY"]]
    assert got["id"] == "7"
    assert got["shapes"] == {"probabilities": [2, classes], "label_ids": [2, 2], "scores": [2, 2], "labels": [2, 2]}
    assert [row[0] for row in got["label_ids"]] == [first_id, first_id]
    assert [row[0] for row in got["labels"]] == [first, first]
    assert got["sums"] == pytest.approx([1, 1], abs=1e-4)
    assert got["classes"][0].split(":")[1:] == [str(first_id), first]
    assert {name: classes[0].split(":")[1:] for name, classes in got["every_output"].items()} == {
        name: [str(first_id), first] for name in ("probabilities", "label_ids", "scores", "labels")
    }
    streamed = got["streamed"]
    assert streamed["ids"] == [str(number) for number in range(20) if number not in (7, 9)]
    assert (streamed["labels"], streamed["final"]) == ([first], True)
    assert streamed["errors"].keys() == {"7", "9"}
    assert "image 0" in streamed["errors"]["7"]
    assert "no model 'nothing'" in streamed["errors"]["9"]
    assert got["probed"] == ["0801", "0801", "0801", "NOT_FOUND"]
    assert got["own"] == [[2, classes], "float32"]
    assert got["later"][0] == first_id
    assert got["unknown"][0] == got["version"][0] == "StatusCode.NOT_FOUND"
    assert got["broken"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "image 1" in got["broken"][1]
    assert got["wrong"][0] == "StatusCode.INVALID_ARGUMENT"
    assert got["late"][0] == "StatusCode.DEADLINE_EXCEEDED"
    assert got["too_many"][0] == "StatusCode.RESOURCE_EXHAUSTED"
    assert got["load"][0] == got["unload"][0] == "StatusCode.UNAVAILABLE"
    assert got["not_there"][0] == "StatusCode.UNIMPLEMENTED"


@pytest.fixture(scope="module")
def triton_grpc(server, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("images") / "red.jpg"
    path.write_bytes(RED)
    return run_client("triton_grpc.py", server.grpc, server.model, path, server.side)


def test_tritonclient_grpc(triton_grpc, server):
    check_triton_grpc(triton_grpc, model=server.model, classes=3, first="red", first_id=0)


def test_our_messages_are_the_protocols(triton_grpc):
    from serve.oip.grpc.messages import message_class

    whole = {
        "ModelInferRequest",
        "ModelInferResponse",
        "InferParameter",
        "InferTensorContents",
        "ModelMetadataResponse",
        "ModelStreamInferResponse",
    }
    assert whole < triton_grpc["messages"].keys()

    for name, theirs in triton_grpc["messages"].items():
        ours = {
            field.name: [field.number, field.type, field.message_type.name if field.message_type else None]
            for field in message_class(name).DESCRIPTOR.fields
        }
        assert ours.items() <= theirs.items(), name
        assert name not in whole or ours == theirs, name


@pytest.mark.parametrize("theirs", ["tritonclient.grpc", "kserve.protocol.grpc.grpc_predict_v2_pb2"])
@pytest.mark.parametrize("order", [1, -1], ids=["ours last", "ours first"])
def test_our_messages_stand_beside_theirs_in_one_process(theirs, order):
    if not CLIENTS_PYTHON.is_file():
        pytest.skip("the clients are not installed: make .venv-clients/.installed")
    first, second = [theirs, "serve.oip.grpc.messages"][::order]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {first}, {second}"
    code += "; print(serve.oip.grpc.messages.message_class('ServerLiveResponse')(live=True).SerializeToString().hex())"

    done = subprocess.run([CLIENTS_PYTHON, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "0801\n", done.stderr


def test_kserve_client(server, red_jpeg):
    got = run_client("kserve_calls.py", server.http, server.grpc, server.model, red_jpeg, server.side)

    rest, rpc = got["rest"], got["grpc"]
    assert (rest["live"], rest["ready"], rest["model_ready"]) == (True, True, True)
    assert rest["id"] == "7"
    assert rest["json"][0] == rest["binary"][0] == "red"
    assert len(rest["binary"]) == 2
    assert rest["one"] == ["labels"]
    assert rest["own"] == [1, 3]
    assert "no model 'nothing'" in rest["unknown"]
    assert (rpc["live"], rpc["ready"], rpc["model_ready"]) == (True, True, True)
    assert rpc["id"] == "7"
    assert rpc["raw"][0] == rpc["typed"][0] == "red"
    assert rpc["unknown"] == "NOT_FOUND"


def check_huggingface_and_openai(got: dict, *, model: str, first: str, features: int) -> None:
    for rows in got["huggingface"].values():
        assert rows[0][0] == first
        assert [score for _, score in rows] == sorted((score for _, score in rows), reverse=True)
    assert [len(rows) for rows in got["huggingface"].values()] == [got["default"], 2, 1]
    assert got["errors"]["sigmoid"][:2] == ["BadRequestError", 400]
    assert "should be 'softmax'" in got["errors"]["sigmoid"][2]
    assert got["errors"]["nothing"][1] == 404
    assert "no model 'nothing'" in got["errors"]["nothing"][2]
    assert got["embeddings"]["model"] == model
    assert got["embeddings"]["widths"] == [features, features]
    assert got["embeddings"]["same"] is True
    assert got["embeddings"]["unknown"] == 404


def test_huggingface_and_openai_clients(server, red_jpeg):
    got = run_client("huggingface_openai.py", f"http://{server.http}", server.model, red_jpeg)

    check_huggingface_and_openai(got, model=server.model, first="red", features=3)


# Once more, against `shardlabel serve`: Ray Serve's ingress stands between. Over TLS below; without it they take long.


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[OipServer]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux' /proc")
    options = ["--model", "efficientnet-lite0", "--max-replicas", "1"]
    with serving(tmp_path_factory.mktemp("serve"), *options) as running:
        yield OipServer(f"127.0.0.1:{running.port}", f"127.0.0.1:{running.grpc_port}", "efficientnet-lite0", 224)


@pytest.fixture(scope="module")
def cat(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "cat.jpg"
    with tarfile.open(ROOT / "models" / "samples" / "photos.tar") as tar:
        path.write_bytes(tar.extractfile("chelsea.jpg").read())
    return path


def check_triton_http(client: triton.InferenceServerClient, model: str, image: bytes) -> None:
    with client:
        assert client.is_server_ready()
        assert client.is_model_ready(model)
        assert client.get_model_config(model)["name"] == model
        assert len(client.get_model_repository_index()) == 2
        # Others may have asked the same endpoint before.
        (before,) = client.get_inference_statistics(model)["model_stats"]
        wanted = triton.InferRequestedOutput("probabilities", class_count=3)
        answers = [
            client.infer(
                model, [images(image)], outputs=[wanted],
                request_compression_algorithm=packed, response_compression_algorithm=packed,
            ).as_numpy("probabilities")
            for packed in (None, "gzip", "deflate")
        ]  # fmt: skip
        everything = client.infer(model, [images(image, image)])
        with pytest.raises(InferenceServerException, match="no model 'nothing'"):
            client.infer("nothing", [images(image)])
        (after,) = client.get_inference_statistics(model)["model_stats"]
        assert after["inference_count"] - before["inference_count"] == 5

    assert "cat" in texts(answers[0])[0]
    assert texts(answers[0]) == texts(answers[1]) == texts(answers[2])
    assert everything.as_numpy("probabilities").shape == (2, 1000)
    assert texts(everything.as_numpy("labels"))[0] == texts(answers[0])[0].split(":")[2]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(240)
def test_tritonclient_http_through_shardlabel_serve(endpoint, cat):
    check_triton_http(triton.InferenceServerClient(endpoint.http), endpoint.model, cat.read_bytes())


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(240)
def test_tritonclient_grpc_through_shardlabel_serve(endpoint, cat):
    got = run_client("triton_grpc.py", endpoint.grpc, endpoint.model, cat, endpoint.side)

    check_triton_grpc(
        got, model=endpoint.model, classes=1000, first=got["classes"][0].split(":")[2], first_id=got["label_ids"][0][0]
    )
    assert "cat" in got["labels"][0][0]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(240)
def test_kserve_client_through_shardlabel_serve(endpoint, cat):
    got = run_client("kserve_calls.py", endpoint.http, endpoint.grpc, endpoint.model, cat, endpoint.side)

    assert "cat" in got["rest"]["json"][0]
    assert got["rest"]["json"] == got["grpc"]["raw"] == got["grpc"]["typed"]
    assert got["grpc"]["unknown"] == "NOT_FOUND"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(240)
def test_huggingface_and_openai_clients_through_shardlabel_serve(endpoint, cat):
    got = run_client("huggingface_openai.py", f"http://{endpoint.http}", endpoint.model, cat)

    check_huggingface_and_openai(got, model=endpoint.model, first="tiger cat", features=1280)


# And over TLS, as a file of settings says it


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, receiver) -> Iterator[tuple[OipServer, Path, ServeProcess]]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux' /proc")
    folder = tmp_path_factory.mktemp("serve")
    cert, key = write_certificate(folder / "tls")
    settings = folder / "serve.yaml"
    settings.write_text(f"model: efficientnet-lite0\nmax_replicas: 1\ntls_cert: {cert}\ntls-key: {key}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with serving(folder, "--config", str(settings)) as running:
            server = OipServer(f"localhost:{running.port}", f"localhost:{running.grpc_port}", "efficientnet-lite0", 224)
            yield server, cert, running


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_tritonclient_http_over_tls(encrypted, cat):
    server, cert, _ = encrypted
    client = triton.InferenceServerClient(server.http, ssl=True, ssl_options={"ca_certs": str(cert)})
    check_triton_http(client, server.model, cat.read_bytes())


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_tritonclient_grpc_over_tls(encrypted, cat):
    server, cert, _ = encrypted

    got = run_client("triton_grpc.py", server.grpc, server.model, cat, server.side, cert)

    first = got["classes"][0].split(":")[2]
    check_triton_grpc(got, model=server.model, classes=1000, first=first, first_id=got["label_ids"][0][0])


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_kserve_client_over_tls(encrypted, cat):
    server, cert, _ = encrypted

    got = run_client("kserve_calls.py", server.http, server.grpc, server.model, cat, server.side, cert)

    assert got["rest"]["json"][0] == "tiger cat"
    assert got["rest"]["json"] == got["grpc"]["raw"] == got["grpc"]["typed"]
    assert got["rest"]["own"] == [1, 1000]


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_huggingface_and_openai_clients_over_tls(encrypted, cat):
    server, cert, _ = encrypted

    got = run_client("huggingface_openai.py", f"https://{server.http}", server.model, cat, SSL_CERT_FILE=str(cert))

    check_huggingface_and_openai(got, model=server.model, first="tiger cat", features=1280)


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_over_tls(encrypted, cat, version):
    server, cert, _ = encrypted
    curl = shutil.which("curl") or pytest.skip("needs curl")
    words = ["-sS", version, "--data-binary", f"@{cat}", "-H", "Content-Type: image/jpeg"]

    trusting = subprocess.run(
        [curl, *words, "--cacert", cert, f"https://{server.http}/v1/classify"], capture_output=True, check=False
    )
    plain = subprocess.run([curl, *words, f"http://{server.http}/v1/classify"], capture_output=True, check=False)

    assert json.loads(trusting.stdout)["results"][0]["labels"][0]["label"] == "tiger cat", trusting.stderr
    assert (plain.returncode, plain.stdout) == (52, b""), "an empty reply"


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_spans_of_a_request_through_shardlabel_serve(encrypted, receiver, cat):
    server, cert, _ = encrypted
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    request = urllib.request.Request(
        f"https://{server.http}/v1/classify", cat.read_bytes(), {"traceparent": f"00-{trace}-{caller}-01"}
    )
    urllib.request.urlopen(request, timeout=30, context=ssl.create_default_context(cafile=cert)).close()

    spans = receiver.of_trace(trace, 4)

    top = spans.pop("POST /v1/classify")
    assert (top.parent, top.about["url.scheme"], top.resource["service.name"]) == (caller, "https", "shardlabel")
    assert {name: span.parent for name, span in spans.items()} == dict.fromkeys(["queue", "decode", "infer"], top.id)


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_renewed_certificate_is_shown_without_a_restart(encrypted):
    server, cert, running = encrypted
    before = cert.read_text()
    write_certificate(cert.parent, "renewed")

    shown = {}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and set(shown.values()) != {cert.read_text()}:
        for address in (server.http, server.grpc):
            host, port = address.split(":")
            shown[address] = ssl.get_server_certificate((host, int(port)))

    assert set(shown.values()) == {cert.read_text()} != {before}
    # A HAProxy that Ray starts anew reads the files itself, before the command has looked.
    while time.monotonic() < deadline and "the certificate was renewed" not in running.output():
        time.sleep(0.1)
    assert "the certificate was renewed" in running.output()
