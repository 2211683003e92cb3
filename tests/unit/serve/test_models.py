"""Several models behind one endpoint: which of them answers, and what a broken one leaves alone."""

from __future__ import annotations

import asyncio
import json

import pytest

from models.errors import ConfigError, NotReadyError, OverloadedError
from serve.config import ServeConfig
from serve.http.in_flight import Extras
from serve.metrics import ServeMetrics
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support import oip_backend
from tests.support.asgi_client import request
from tests.support.fake_backend import FakeBackend

CONFIG = ServeConfig(model=("a", "b"))
JPEG = {"content_type": "image/jpeg"}
IN_JSON = {"content_type": "application/json"}


def two(**of_b) -> Models:
    return Models(FakeBackend(name="a"), FakeBackend(name="b", **of_b))


def ask(models: Models, path: str, body: bytes = b"x", extras: Extras | None = None, method: str = "POST", **headers):
    return asyncio.run(request(build_asgi(models, CONFIG, extras), method, path, body, **(headers or JPEG)))


def embed(models: Models, path: str, **body):
    return ask(models, path, json.dumps({"input": "AAAA", **body}).encode(), **IN_JSON)


@pytest.mark.parametrize(("query", "name"), [("", "a"), ("?model=a", "a"), ("?model=b", "b")])
def test_the_query_names_the_model_that_labels_and_the_first_is_meant_without(query, name):
    models = two()

    answer = ask(models, f"/v1/classify{query}")

    assert (answer.status, answer.json["model"]) == (200, name)
    assert [backend.spec.name for backend in models if backend.seen] == [name]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/embeddings", {}, "a"),
        ("/v1/embeddings?model=b", {}, "b"),
        ("/v1/embeddings", {"model": "b"}, "b"),
        ("/v1/embeddings?model=b", {"model": "b"}, "b"),
    ],
)
def test_embeddings_are_of_the_model_that_the_query_or_the_body_names(path, body, name):
    answer = embed(two(), path, **body)

    assert (answer.status, answer.json["model"]) == (200, name)


def test_a_body_that_names_another_model_than_the_query_is_refused():
    answer = embed(two(), "/v1/embeddings?model=a", model="b")

    assert answer.status == 400
    assert "twice" in answer.json["error"]


def test_hugging_faces_route_has_every_model():
    models = two()

    assert [ask(models, f"/models/{name}").status for name in ("a", "b", "c")] == [200, 200, 404]
    assert [len(backend.seen) for backend in models] == [1, 1]


@pytest.mark.parametrize("path", ["/v1/classify?model=c", "/models/c", "/v1/embeddings?model=c", "/v2/models/c/infer"])
def test_an_unknown_model_is_404_that_names_those_there_are(path):
    answer = ask(two(), path)

    assert answer.status == 404
    assert "'c'" in answer.json["error"]
    assert "there are a, " in answer.json["error"]
    assert "b" in answer.json["error"].partition("there are a, ")[2]


def test_where_no_model_is_left_the_endpoint_says_so():
    answer = ask(Models(), "/v1/classify")

    assert (answer.status, answer.json["error"]) == (404, "no model is served here; there is none")
    assert ask(Models(), "/healthz", method="GET").status == 200


def infer(name: str) -> bytes:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["Ug=="]}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "labels"}]}).encode()


def test_the_protocol_has_two_models_of_each():
    models = Models(*(oip_backend.FakeBackend(oip_backend.fake_spec(name)) for name in ("one", "two")))
    client = oip_backend.Client(models=models)

    names = client("GET", "/v2/models").json["models"]
    index = client("POST", "/v2/repository/index").json
    answers = [client("POST", f"/v2/models/{name}/infer", infer(name)) for name in ("one", "two")]

    assert names == ["one", "one-tensor", "two", "two-tensor"]
    assert [(entry["name"], entry["state"]) for entry in index] == [(name, "READY") for name in names]
    assert [(answer.status, answer.json["model_name"]) for answer in answers] == [(200, "one"), (200, "two")]
    assert [len(backend.calls) for backend in models] == [1, 1]


def test_two_versions_of_a_name_are_told_apart_and_the_first_is_meant_without():
    specs = [oip_backend.fake_spec("m").model_copy(update={"version": version}) for version in ("7", "8")]
    models = Models(*map(oip_backend.FakeBackend, specs))
    client = oip_backend.Client(models=models)

    answers = [client("POST", f"/v2/models/m{part}/infer", infer("m")) for part in ("", "/versions/7", "/versions/8")]

    assert [answer.json["model_version"] for answer in answers] == ["7", "7", "8"]
    assert client("GET", "/v2/models/m").json["versions"] == ["7", "8"]
    assert "'7', '8'" in client("GET", "/v2/models/m/versions/9").error
    assert {entry["version"] for entry in client("POST", "/v2/repository/index").json} == {"7", "8"}
    assert [s["version"] for s in client("GET", "/v2/models/m/stats").json["model_stats"]] == ["7", "8"]


def test_one_name_twice_with_one_version_is_refused():
    with pytest.raises(ConfigError, match="'a' is given twice with version '1'"):
        Models(FakeBackend(name="a"), FakeBackend(name="a"))


def test_a_model_that_is_not_ready_is_not_and_the_endpoint_is():
    broken = oip_backend.FakeBackend(oip_backend.fake_spec("broken"), is_ready=False)
    client = oip_backend.Client(models=Models(oip_backend.FakeBackend(), broken))

    assert client("GET", "/v2/models/broken/ready").status == 503
    assert client("GET", "/v2/models/tiny/ready").status == 200
    assert client("GET", "/v2/health/ready").status == 200
    assert [e["name"] for e in client("POST", "/v2/repository/index", b'{"ready": true}').json] == [
        "tiny",
        "tiny-tensor",
    ]


@pytest.mark.parametrize(
    "refused", [OverloadedError("overloaded", retry_after_s=3.0), NotReadyError("has failed")], ids=["full", "broken"]
)
@pytest.mark.parametrize(("name", "other"), ["ab", "ba"])
def test_one_models_full_queue_or_fault_refuses_its_own_requests_only(name, other, refused):
    models = two()
    models.find(name).full = refused

    assert ask(models, f"/v1/classify?model={name}").status == 503
    assert ask(models, f"/v1/classify?model={other}").status == 200
    assert embed(models, "/v1/embeddings", model=name).status == 503
    assert embed(models, "/v1/embeddings", model=other).status == 200
    models.admit(1)  # of a call of gRPC, before it is known which model it is for


def test_requests_are_counted_by_model_and_those_for_none_by_none():
    models, metrics = two(), ServeMetrics("", "r")
    extras = Extras(metrics=metrics)

    for path in ("/v1/classify", "/v1/classify?model=b", "/models/b", "/v1/classify?model=made-up"):
        ask(models, path, extras=extras)

    text = metrics.render().decode()
    assert 'requests_total{model="a",replica="r",route="/v1/classify",status="200"} 1.0' in text
    assert 'requests_total{model="b",replica="r",route="/v1/classify",status="200"} 1.0' in text
    assert 'requests_total{model="b",replica="r",route="/models",status="200"} 1.0' in text
    assert 'requests_total{model="",replica="r",route="/v1/classify",status="404"} 1.0' in text
    assert "made-up" not in text


def test_the_page_lists_the_models():
    state = ask(two(), "/page/state", b"", method="GET").json

    assert [model["name"] for model in state["models"]] == ["a", "b"]


def test_the_document_names_the_models_and_the_parameter():
    document = ask(two(), "/openapi.json", b"", method="GET").json

    assert document["info"]["title"] == "shardlabel: a, b"
    names = [one["name"] for one in document["paths"]["/v1/classify"]["post"]["parameters"]]
    assert {"model", "top_k"} <= set(names)
