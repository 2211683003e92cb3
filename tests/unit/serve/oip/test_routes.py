"""The routes beside `infer`: what they answer, and to which method."""

from __future__ import annotations

import pytest

from serve.config import ServeConfig
from tests.support.oip_backend import Client, FakeBackend
from tests.unit.serve.oip.test_infer import json_images

IMAGE_METADATA = {
    "name": "tiny", "versions": ["1"], "platform": "onnxruntime_onnx",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "label_ids", "datatype": "INT32", "shape": [-1, -1]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "labels", "datatype": "BYTES", "shape": [-1, -1]},
    ],
}  # fmt: skip


def test_health_and_metadata():
    client = Client()

    assert client("GET", "/v2/health/live").json == {"live": True}
    assert client("GET", "/v2/health/ready").json == {"ready": True}
    server = client("GET", "/v2").json
    assert server["name"] == "shardlabel"
    assert server["version"]
    assert {"binary_tensor_data", "classification", "model_configuration", "statistics"} <= set(server["extensions"])
    assert client("GET", "/v2/models").json == {"models": ["tiny", "tiny-tensor"]}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/", "/v2/models/tiny/versions/1"])
def test_model_metadata(path):
    assert Client()("GET", path).json == IMAGE_METADATA


def test_the_tensor_model_has_the_models_own_tensors():
    metadata = Client()("GET", "/v2/models/tiny-tensor").json

    assert metadata["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 2, 2]}]
    assert metadata["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}]


def test_a_model_configuration_leaves_the_batch_axis_out():
    config = Client(limits=ServeConfig(max_images=9))("GET", "/v2/models/tiny-tensor/config").json

    assert config["max_batch_size"] == 9
    assert config["input"] == [{"name": "pixels", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 2, 2]}]
    assert config["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": [4]}]


def test_statistics_count_requests_and_images():
    client = Client()
    client.infer(json_images(b"R", b"G"))
    client.infer(json_images(b"R"))
    client.infer(json_images(b"?"))
    client.infer({})

    (stats,) = client("GET", "/v2/models/tiny/stats").json["model_stats"]

    assert (stats["name"], stats["version"], stats["inference_count"]) == ("tiny", "1", 3)
    assert stats["inference_stats"]["success"]["count"] == 2
    assert stats["inference_stats"]["success"]["ns"] > 0
    assert stats["inference_stats"]["fail"]["count"] == 2
    assert stats["last_inference"] > 1_600_000_000_000
    everything = client("GET", "/v2/models/stats").json["model_stats"]
    assert [entry["name"] for entry in everything] == ["tiny", "tiny-tensor"]


def test_the_repository_index_lists_states():
    index = Client()("POST", "/v2/repository/index").json
    slow = Client(FakeBackend(is_ready=False))

    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("tiny", "1", "READY"), ("tiny-tensor", "1", "READY"),
    ]  # fmt: skip
    assert [entry["state"] for entry in slow("POST", "/v2/repository/index").json] == ["UNAVAILABLE"] * 2
    assert slow("POST", "/v2/repository/index", b'{"ready":true}').json == []


def test_what_is_not_ready_is_503():
    client = Client(FakeBackend(is_ready=False))

    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        got = client("GET", path)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert "not ready" in got.error
    assert client("GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("what", ["load", "unload"])
def test_models_are_loaded_and_unloaded_by_request_only_where_that_was_said(what):
    got = Client()("POST", f"/v2/repository/models/tiny/{what}")

    assert got.status == 503
    assert "--model-control explicit" in got.error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/nothing/ready", 404),
        ("POST", "/v2/models/nothing/infer", 404),
        ("GET", "/v2/models/a/b/ready", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
        ("GET", "/v2/models/tiny/versions/2/stats", 404),
        ("POST", "/v2/repository/models/nothing/load", 503),
        ("POST", "/v2/repository/models/nothing/unload", 503),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/index", 400),
        ("GET", "/v2/trace/setting", 404),
        ("POST", "/v2/models/tiny/trace/setting", 404),
        ("POST", "/v2/logging", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("POST", "/v2/cudasharedmemory/region/r/register", 404),
    ],
)
def test_every_error_is_json(method, path, status):
    got = Client()(method, path, b"[" if status == 400 else b"")

    assert got.status == status
    assert got.error


def test_a_method_that_is_not_allowed_names_those_that_are():
    assert Client()("GET", "/v2/models/tiny/infer").headers["allow"] == "POST"
    assert Client()("PUT", "/v2/models/tiny").headers["allow"] == "GET, HEAD"


def test_head_is_answered_as_get_is():
    assert Client()("HEAD", "/v2/health/ready").status == 200


def test_routes_work_below_any_prefix():
    assert Client()("GET", "/v2/models", root="/images").json == {"models": ["tiny", "tiny-tensor"]}


def test_a_body_that_is_too_long_is_413():
    assert Client(limits=ServeConfig(max_request_bytes=10)).infer(b"x" * 11).status == 413


def test_the_serves_timeout_header_is_a_deadline_too():
    client = Client()

    client.infer(json_images(b"R"), x_request_timeout_seconds="0.5")
    client.infer(json_images(b"R"))

    assert client.backend.calls[0]["deadline"] < client.backend.calls[1]["deadline"] - 5
