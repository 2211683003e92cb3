"""Requests that no client would write: none of them may be our fault, and none may stop the next one."""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.config import ServeConfig
from serve.oip.codec import Datatype
from tests.support.oip_backend import Client
from tests.unit.serve.oip.test_infer import bytes_element, image_request, json_images, pixel_request

LIMITS = ServeConfig(max_request_bytes=4096, max_images=4)
TRIES = int(os.environ.get("SHARDLABEL_FUZZ_EXAMPLES", "300"))

PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "bomb": lambda body: gzip.compress(body + bytes(1_000_000)),
    "cut": lambda body: zlib.compress(body)[:-3],
}

# What small bodies hold a great deal of; packed they are smaller still. At full size: tests/support/hostile_requests.py.
BOMBS = [
    b"[" * 4000, b'{"inputs":' * 300, b'"\\ud800"', b"1" * 4000, b"0." + b"7" * 4000, b"[" + b"[]," * 1300 + b"[]]",
    b'{"inputs":[' + b'"",' * 1300 + b'""]}', b'{"inputs":[{"name":"pixels","datatype":"FP32","shape":[1],"data":['
    + b"0," * 1900 + b"0]}]}", b'{"parameters":{' + b",".join(b'"%d":0' % i for i in range(400)) + b'},"inputs":[]}',
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4),
    max_leaves=12,
)


# What stands where something else should: types, sizes and names that have broken servers of this protocol before.
nasty = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2, 3, 4, 2**31, 2**63, 2**64 + 1, 1.5, 1e400, "", "1", [], {}, [[]], [2, 3]]
    ),
    st.sampled_from([*get_args(Datatype), "image", "pixels", "labels", "probabilities", "?", "Ug==", "UgA", "\ud800"]),
    json_values,
)
parameter_names = st.sampled_from(
    ["binary_data_size", "binary_data", "binary_data_output", "classification", "top_k", "timeout", "priority",
     "sequence_id", "shared_memory_region"]
)  # fmt: skip


def tensor_of(name: str, datatype: str, shape: list[int], data: list[object], content: bytes, *, binary: bool):
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    if binary:
        return {**tensor, "parameters": {"binary_data_size": len(content)}}, content
    return {**tensor, "data": data}, b""


@st.composite
def good_requests(draw):
    """Draw a request that is right: (model, document, binary data)."""
    binary = draw(st.booleans())
    count = draw(st.integers(1, 3))
    if draw(st.booleans()):
        images = [draw(st.sampled_from([b"R", b"Gx", b"B" * 9])) for _ in range(count)]
        shape = draw(st.sampled_from([[count], [count, 1]]))
        data = [base64.b64encode(image).decode() for image in images]
        tensor, content = tensor_of("image", "BYTES", shape, data, b"".join(map(bytes_element, images)), binary=binary)
        model, names = "tiny", ["probabilities", "label_ids", "scores", "labels"]
    else:
        pixels = np.zeros((count, 3, 2, 2), "<f4")
        tensor, content = tensor_of(
            "pixels", "FP32", [count, 3, 2, 2], pixels.tolist(), pixels.tobytes(), binary=binary
        )
        model, names = "tiny-tensor", ["scores"]
    wanted = draw(st.lists(st.sampled_from(names), unique=True))
    outputs = [{"name": name, "parameters": {"binary_data": draw(st.booleans())}} for name in wanted]
    if "probabilities" in wanted and draw(st.booleans()):
        outputs[wanted.index("probabilities")]["parameters"]["classification"] = draw(st.integers(0, 9))
    document = {"inputs": [tensor], "outputs": outputs, "id": draw(st.text(max_size=5)),
                "parameters": {"binary_data_output": draw(st.booleans()), "timeout": 10**6}}  # fmt: skip
    return model, document, content


@st.composite
def damaged(draw, document: object):
    """Draw a document with one value of it, at any depth, replaced, removed or added."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(document)))
        return {**document, key: draw(damaged(document[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], draw(damaged(document[at])), *document[at + 1 :]]
    kind = draw(st.sampled_from(["replace", "remove", "add"]))
    if kind == "remove" and isinstance(document, dict) and document:
        gone = draw(st.sampled_from(sorted(document)))
        return {key: value for key, value in document.items() if key != gone}
    if kind == "remove" and isinstance(document, list):
        return document[1:]
    if kind == "add" and isinstance(document, dict):
        return {**document, draw(parameter_names | st.sampled_from(["data", "parameters", "id"])): draw(nasty)}
    if kind == "add" and isinstance(document, list):
        return [*document, draw(nasty)]
    return draw(nasty)


@st.composite
def requests(draw):
    model, document, content = draw(good_requests())
    for _ in range(draw(st.integers(0, 2))):
        document = draw(damaged(document))
    head = json.dumps(document).encode()
    length: str | None = str(len(head))
    # One thing in four goes wrong around the JSON: its length, what follows it, how it is packed, what it is.
    wrong = draw(st.sampled_from([*[None] * 9, "length", "tail", "packed", "body"]))
    if wrong == "length":
        length = draw(
            st.none() | st.integers(-2, 4100).map(str) | st.text(st.characters(max_codepoint=255), max_size=20)
        )
    elif wrong == "tail":
        content = draw(st.binary(max_size=80)) + content[draw(st.integers(0, 9)) :]
    elif wrong == "body":
        head = draw(st.binary(max_size=200) | st.sampled_from(BOMBS))
    packed = draw(st.sampled_from(["br", "gzip, gzip", "bomb", "cut"])) if wrong == "packed" else None
    return {
        "head": head, "tail": content, "length": length, "model": model,
        "packed": packed or draw(st.sampled_from([None, None, "gzip", "deflate"])),
        "accept": draw(st.sampled_from(["", "gzip", "deflate;q=0.5", "gzip;q=0, deflate", "*", "gzip;q=x"])),
    }  # fmt: skip


def send(client: Client, request: dict[str, object]) -> None:
    """Send one request, and check what must hold for every answer."""
    body = request["head"] + request["tail"]
    headers = {"accept_encoding": request["accept"]}
    if request["length"] is not None:
        headers["inference_header_content_length"] = request["length"]
    if request["packed"] is not None:
        headers["content_encoding"] = {"bomb": "gzip", "cut": "deflate"}.get(request["packed"], request["packed"])
        body = PACK.get(request["packed"], bytes)(body)

    got = client.infer(body, request["model"], **headers)

    late = (504,) * (b'"timeout"' in request["head"])
    assert got.status in (200, 400, 413, 415, 422, *late), (got.status, got.body)
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
@given(requests())
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
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change":
            changed[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(changed) > 1:
            del changed[at]
        elif kind == "insert":
            changed.insert(at, data.draw(st.integers(0, 255)))
        else:
            del changed[max(1, at) :]
    shift = data.draw(st.integers(-3, 3))

    send(
        Client(limits=LIMITS),
        {
            "head": bytes(changed), "tail": b"", "length": None if length is None else str(length + shift),
            "packed": None, "accept": "", "model": model,
        },
    )  # fmt: skip
