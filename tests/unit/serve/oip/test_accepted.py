"""What a calibration adds to the answers: `accepted`, in each form; and nothing without one."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from models.catalog import load_spec
from serve.config import ServeConfig
from serve.model.models import Models
from serve.oip.grpc.messages import request_class
from serve.routes import build_asgi
from tests.support import fake_backend
from tests.support.asgi_client import request
from tests.support.calibrations import build_calibration
from tests.support.oip_backend import Client, FakeBackend
from tests.unit.serve.oip.test_grpc import Ingress, raw_images, typed_images, want
from tests.unit.serve.oip.test_infer import binary_outputs, image_request, json_images

IMAGES = (b"R1", b"G1", b"B1")


@pytest.fixture(scope="module")
def calibration(tiny_model):
    # Every image's best score is 0.7.
    return build_calibration(load_spec(str(tiny_model)), temperature=1.25, pooled=0.7, classes={1: 0.71, 2: None})


@pytest.fixture
def client(calibration):
    return Client(FakeBackend(calibration=calibration))


def test_accepted_is_an_output_of_a_calibrated_model_alone(client):
    described = {"name": "accepted", "datatype": "BOOL", "shape": [-1]}

    assert client("GET", "/v2/models/tiny").json["outputs"][-1] == described
    assert described not in Client()("GET", "/v2/models/tiny").json["outputs"]
    assert described not in client("GET", "/v2/models/tiny-tensor").json["outputs"]
    body = json_images(b"R1", outputs=[{"name": "accepted"}])
    assert "has the outputs probabilities, label_ids, scores, labels, got 'accepted'" in Client().infer(body).error


def test_the_configuration_says_which_calibration(client, calibration):
    config = client("GET", "/v2/models/tiny/config").json

    assert config["output"][-1] == {"name": "accepted", "data_type": "TYPE_BOOL", "dims": [1]}
    assert config["parameters"] == {
        "calibration_sha256": {"string_value": calibration.sha256},
        "temperature": {"string_value": "1.25"},
        "precision_target": {"string_value": "95"},
    }
    assert Client()("GET", "/v2/models/tiny/config").json["parameters"] == {}


def test_it_comes_as_json_and_as_bytes(client):
    in_json = client.infer(json_images(*IMAGES, outputs=[{"name": "accepted"}])).json
    body, length = image_request(*IMAGES, parameters={"binary_data_output": True})
    answer = client.infer(body, inference_header_content_length=length)

    expected = {"name": "accepted", "datatype": "BOOL", "shape": [3], "data": [True, False, False]}
    assert in_json["outputs"] == [expected]
    assert binary_outputs(answer)["accepted"] == b"\1\0\0"


def test_it_comes_over_grpc_raw_and_typed(calibration):
    ingress = Ingress(FakeBackend(calibration=calibration))

    raw, _ = ingress.infer(want(raw_images(*IMAGES), "accepted"))
    typed, _ = ingress.infer(want(typed_images(*IMAGES), "accepted"))
    config, _ = ingress.call("ModelConfig", request_class("ModelConfig")(name="tiny"))

    assert raw.outputs[0].datatype == "BOOL"
    assert np.frombuffer(raw.raw_output_contents[0], np.bool_).tolist() == [True, False, False]
    assert list(typed.outputs[0].contents.bool_contents) == [True, False, False]
    assert config.config.parameters["calibration_sha256"].string_value == calibration.sha256


def test_classify_has_a_field_with_a_calibration_alone(calibration):
    plain, calibrated = fake_backend.FakeBackend(), fake_backend.FakeBackend()
    calibrated.calibration = calibration
    config = ServeConfig(model="efficientnet-lite0")

    def ask(backend, body: bytes):
        answer = asyncio.run(
            request(build_asgi(Models(backend), config), "POST", "/v1/classify", body, content_type="image/jpeg")
        )
        return json.loads(answer.body)["results"][0]

    assert "accepted" not in ask(plain, b"\xff\xd8\xff" + bytes(3))
    assert ask(calibrated, b"\xff\xd8\xff" + bytes(3))["accepted"] is True
    assert ask(calibrated, b"\xff\xd8\xff" + bytes(4))["accepted"] is False
