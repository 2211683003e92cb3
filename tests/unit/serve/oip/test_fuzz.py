"""Requests that no client would write: none of them may be our fault, and none may stop the next one."""

from __future__ import annotations

import gzip
import json
import os
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.oip.datatypes import DATATYPES
from serve.oip.endpoint import Limits
from tests.unit.serve.oip.fake_backend import Client
from tests.unit.serve.oip.test_infer import image_request, json_images, pixel_request

LIMITS = Limits(max_request_bytes=4096, max_images=4)
TRIES = int(os.environ.get("SHARDLABEL_FUZZ_EXAMPLES", "300"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4),
    max_leaves=12,
)


def sometimes(usual: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Mostly what a client would write, else anything."""
    return st.one_of(usual, usual, usual, json_values)


shapes = st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63, 2**64 + 1]), max_size=5)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": sometimes(st.integers(-1, 80)),
        "binary_data": sometimes(st.booleans()),
        "binary_data_output": sometimes(st.booleans()),
        "classification": sometimes(st.integers(-1, 9)),
        "top_k": sometimes(st.integers(-1, 9)),
        "timeout": sometimes(st.integers(-1, 10**12)),
        "priority": sometimes(st.integers(0, 3)),
        "sequence_id": sometimes(st.just(0)),
        "shared_memory_region": st.text(max_size=3),
    },
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": sometimes(st.sampled_from(["image", "pixels"])),
        "shape": sometimes(st.one_of(st.sampled_from([[1], [1, 1], [2], [1, 3, 2, 2]]), shapes)),
        "datatype": sometimes(st.sampled_from(DATATYPES)),
        "data": sometimes(
            st.lists(st.sampled_from(["Ug==", "Rw==", "?", "", "UgA"]) | st.floats() | st.integers(), max_size=12)
        ),
        "parameters": sometimes(parameters),
    },
)
outputs = st.fixed_dictionaries(
    {},
    optional={
        "name": sometimes(st.sampled_from(["probabilities", "labels", "label_ids", "scores"])),
        "parameters": sometimes(parameters),
    },
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": sometimes(st.text(max_size=5)),
        "inputs": sometimes(st.lists(tensors, max_size=2)),
        "outputs": sometimes(st.lists(outputs, max_size=3)),
        "parameters": sometimes(parameters),
    },
)
bodies = st.one_of(
    documents.map(lambda document: json.dumps(document).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 4000, b'{"inputs":' * 300, b'"' + b"\\ud800" * 10 + b'"']),
)
requests = st.fixed_dictionaries({
    "head": bodies,
    "tail": st.binary(max_size=80),
    "length": st.one_of(
        st.just("true"), st.just("true"), st.none(), st.integers(-2, 4100).map(str),
        st.text(st.characters(max_codepoint=255), max_size=20),
    ),
    "packed": st.sampled_from([None, None, "gzip", "deflate", "br", "gzip, gzip", "bomb"]),
    "accept": st.sampled_from(["", "gzip", "deflate;q=0.5", "gzip;q=0, deflate", "*", "gzip;q=x"]),
    "model": st.sampled_from(["tiny", "tiny-tensor"]),
})  # fmt: skip


def send(client: Client, request: dict[str, object]) -> None:
    """Send one request, and check what must hold for every answer."""
    body = request["head"] + request["tail"]
    headers = {"accept_encoding": request["accept"]}
    length = str(len(request["head"])) if request["length"] == "true" else request["length"]
    if length is not None:
        headers["inference_header_content_length"] = length
    if request["packed"] is not None:
        headers["content_encoding"] = "gzip" if request["packed"] == "bomb" else request["packed"]
        pack = {"gzip": gzip.compress, "deflate": zlib.compress, "bomb": lambda b: gzip.compress(b + bytes(100_000))}
        body = pack.get(request["packed"], bytes)(body)

    got = client.infer(body, request["model"], **headers)

    assert got.status in (200, 400, 413, 415, 422, 501), (got.status, got.body)
    if got.status != 200:
        assert 0 < len(got.error) < 2000
        return
    plain = got.body
    if (encoding := got.headers.get("content-encoding")) is not None:
        plain = gzip.decompress(plain) if encoding == "gzip" else zlib.decompress(plain)
    end = int(got.headers.get("inference-header-content-length", len(plain)))
    sizes = [o["parameters"]["binary_data_size"] for o in json.loads(plain[:end])["outputs"] if "parameters" in o]
    assert end + sum(sizes) == len(plain)


@settings(max_examples=TRIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests)
def test_any_request_gets_an_answer(request_parts):
    send(Client(limits=LIMITS), request_parts)


GOOD = {
    "images": (image_request(b"R", b"Gx", id="7"), "tiny"),
    "classes": (image_request(b"R", outputs=[{"name": "probabilities", "parameters": {"classification": 2}}]), "tiny"),
    "json": ((json.dumps(json_images(b"R")).encode(), None), "tiny"),
    "pixels": (pixel_request(), "tiny-tensor"),
    "json pixels": (pixel_request(as_json=True), "tiny-tensor"),
}


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=TRIES // 3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_good_request_with_a_few_bytes_changed_gets_an_answer(name, data):
    (body, length), model = GOOD[name]
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change":
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(damaged) > 1:
            del damaged[at]
        elif kind == "insert":
            damaged.insert(at, data.draw(st.integers(0, 255)))
        else:
            del damaged[max(1, at) :]
    shift = data.draw(st.integers(-3, 3))

    send(
        Client(limits=LIMITS),
        {
            "head": bytes(damaged), "tail": b"", "length": None if length is None else str(length + shift),
            "packed": None, "accept": "", "model": model,
        },
    )  # fmt: skip
