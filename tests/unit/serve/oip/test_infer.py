"""What `infer` answers over HTTP, byte for byte where the protocol says so."""

from __future__ import annotations

import base64
import gzip
import json
import time
import zlib

import numpy as np
import pytest

from models.errors import DeadlineError, OverloadedError
from serve.config import ServeConfig
from tests.support.oip_backend import Client, FakeBackend

PIXELS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


def bytes_element(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


def image_request(*contents: bytes, **more: object) -> tuple[bytes, int]:
    """Return a request with binary images, and the length of its JSON part."""
    binary = b"".join(map(bytes_element, contents))
    tensor = {"name": "image", "shape": [len(contents), 1], "datatype": "BYTES",
              "parameters": {"binary_data_size": len(binary)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + binary, len(head)


def json_images(*contents: bytes, **more: object) -> dict[str, object]:
    data = [base64.b64encode(content).decode() for content in contents]
    return {"inputs": [{"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}], **more}


def pixel_request(pixels: np.ndarray = PIXELS, *, as_json: bool = False, **more: object) -> tuple[bytes, int | None]:
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "FP32"}
    if as_json:
        return json.dumps({"inputs": [{**tensor, "data": pixels.ravel().tolist()}], **more}).encode(), None
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + pixels.tobytes(), len(head)


def binary_outputs(got) -> dict[str, bytes]:
    """Cut an answer's binary part by the sizes in its JSON part."""
    length = int(got.headers["inference-header-content-length"])
    at = length
    parts = {}
    for output in json.loads(got.body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        parts[output["name"]] = got.body[at : at + size]
        at += size
    assert at == len(got.body)
    return parts


def test_the_request_that_tritonclient_writes_is_answered_with_classes():
    # Byte for byte what tritonclient 2.73.0 sends.
    head = (
        b'{"id":"42","inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":10}}],'
        b'"outputs":[{"name":"probabilities","parameters":{"classification":2,"binary_data":true}}]}'
    )

    got = Client().infer(head + b"\x06\x00\x00\x00G\xd8jpeg", inference_header_content_length=len(head))

    assert got.status == 200
    assert got.body == (
        b'{"model_name":"tiny","model_version":"1","outputs":[{"name":"probabilities","datatype":"BYTES","shape":[1,2],'
        b'"parameters":{"binary_data_size":38}}],"id":"42"}'
        b"\x10\x00\x00\x000.700000:1:green\x0e\x00\x00\x000.100000:0:red"
    )
    assert got.headers["inference-header-content-length"] == str(len(got.body) - 38)


def test_all_outputs_come_as_json_by_default():
    got = Client().infer(json_images(b"Gx", b"Rx", id="a b"))

    assert got.headers["content-type"] == "application/json"
    assert got.json == {
        "model_name": "tiny", "model_version": "1", "id": "a b",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 4],
             "data": [0.1, 0.7, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1]},
            {"name": "label_ids", "datatype": "INT32", "shape": [2, 4], "data": [1, 0, 2, 3, 0, 1, 2, 3]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 4], "data": [0.7, 0.1, 0.1, 0.1] * 2},
            {"name": "labels", "datatype": "BYTES", "shape": [2, 4],
             "data": ["green", "red", "blue", "no colour at all", "red", "green", "blue", "no colour at all"]},
        ],
    }  # fmt: skip
    assert "inference-header-content-length" not in got.headers


def test_binary_data_output_makes_all_outputs_binary():
    body, length = image_request(b"Bx", parameters={"binary_data_output": True, "top_k": 2})

    got = Client().infer(body, inference_header_content_length=length)

    assert got.headers["content-type"] == "application/octet-stream"
    assert binary_outputs(got) == {
        "probabilities": np.array([0.1, 0.1, 0.7, 0.1], "<f4").tobytes(),
        "label_ids": np.array([2, 0], "<i4").tobytes(),
        "scores": np.array([0.7, 0.1], "<f4").tobytes(),
        "labels": bytes_element(b"blue") + bytes_element(b"red"),
    }


def test_an_outputs_own_binary_data_beats_the_requests():
    outputs = [{"name": "labels", "parameters": {"binary_data": False}}, {"name": "label_ids"}]
    body, length = image_request(b"Rx", outputs=outputs, parameters={"binary_data_output": True, "top_k": 1})

    got = Client().infer(body, inference_header_content_length=length)

    head = json.loads(got.body[: int(got.headers["inference-header-content-length"])])
    assert head["outputs"] == [
        {"name": "labels", "datatype": "BYTES", "shape": [1, 1], "data": ["red"]},
        {"name": "label_ids", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
    ]
    assert got.body.endswith(b"\0\0\0\0")


def test_only_what_is_asked_for_is_computed():
    client = Client()

    got = client.infer(json_images(b"Rx", outputs=[{"name": "labels"}], parameters={"top_k": 1}))

    assert [output["name"] for output in got.json["outputs"]] == ["labels"]
    assert client.backend.calls[0]["top_k"] == 1
    assert client.backend.calls[0]["probabilities"] is False


def test_more_classes_than_labels_give_each_what_it_asked_for():
    outputs = [{"name": "probabilities", "parameters": {"classification": 3}}, {"name": "labels"}]

    got = Client().infer(json_images(b"Rx", outputs=outputs, parameters={"top_k": 2}))

    assert [output["data"] for output in got.json["outputs"]] == [
        ["0.700000:0:red", "0.100000:1:green", "0.100000:2:blue"], ["red", "green"],
    ]  # fmt: skip


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_every_output_can_be_given_as_classes(binary):
    names = ["probabilities", "label_ids", "scores", "labels"]
    outputs = [{"name": name, "parameters": {"classification": 2, "binary_data": binary}} for name in names]
    client = Client()

    got = client.infer(json_images(b"G", b"B", outputs=outputs, parameters={"top_k": 1}))

    classes = [b"0.700000:1:green", b"0.100000:0:red", b"0.700000:2:blue", b"0.100000:0:red"]
    if binary:
        assert binary_outputs(got) == dict.fromkeys(names, b"".join(map(bytes_element, classes)))
    else:
        assert [(o["name"], o["datatype"], o["shape"]) for o in got.json["outputs"]] == [
            (name, "BYTES", [2, 2]) for name in names
        ]
        assert all(o["data"] == [text.decode() for text in classes] for o in got.json["outputs"])
    assert client.backend.calls[0]["probabilities"] is False


def test_a_classification_of_more_classes_than_there_are_gives_all():
    outputs = [{"name": "probabilities", "parameters": {"classification": 1000}}]

    got = Client().infer(json_images(b"Rx", outputs=outputs))

    assert got.json["outputs"][0]["shape"] == [1, 4]


def test_a_raw_body_is_one_image_and_all_outputs_are_binary():
    client = Client()

    got = client.infer(b"Gjpeg bytes", inference_header_content_length=0)

    assert client.backend.calls[0]["images"] == [b"Gjpeg bytes"]
    assert binary_outputs(got)["label_ids"] == np.array([1, 0, 2, 3], "<i4").tobytes()


def test_a_raw_body_is_answered_in_json_where_that_is_asked_for():
    got = Client().infer(b"Gjpeg bytes", inference_header_content_length=0, accept="application/json")

    assert [output["name"] for output in got.json["outputs"]] == ["probabilities", "label_ids", "scores", "labels"]
    assert got.json["outputs"][3]["data"][0] == "green"


def test_a_raw_body_is_a_batch_of_tensors():
    got = Client().infer(PIXELS.tobytes(), "tiny-tensor", inference_header_content_length=0)

    expected = np.array([[1.5, 5.5, 9.5, 0], [13.5, 17.5, 21.5, 0]], "<f4")
    assert binary_outputs(got) == {"scores": expected.tobytes()}


def test_a_raw_body_that_is_no_whole_tensor_is_refused():
    got = Client().infer(PIXELS.tobytes()[:-1], "tiny-tensor", inference_header_content_length=0)

    assert got.status == 400
    assert "48 bytes" in got.error


@pytest.mark.parametrize("as_json", [False, True], ids=["binary", "json"])
@pytest.mark.parametrize("pad", range(4))
def test_the_models_own_tensor_goes_in_and_comes_out(as_json, pad):
    # Whatever the length of the JSON, that is wherever in the body the floats begin.
    body, length = pixel_request(as_json=as_json, id="x" * pad)
    headers = {} if length is None else {"inference_header_content_length": length}

    got = Client().infer(body, "tiny-tensor", **headers)

    assert got.json["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [2, 4], "data": [1.5, 5.5, 9.5, 0, 13.5, 17.5, 21.5, 0]}
    ]
    assert got.json["id"] == "x" * pad


def test_the_models_own_output_can_be_given_as_classes():
    body, length = pixel_request(outputs=[{"name": "scores", "parameters": {"classification": 2}}])

    got = Client().infer(body, "tiny-tensor", inference_header_content_length=length)

    assert got.json["outputs"][0]["data"] == [
        "9.500000:2:blue", "5.500000:1:green", "21.500000:2:blue", "17.500000:1:green",
    ]  # fmt: skip
    assert got.json["outputs"][0]["shape"] == [2, 2]


def test_equal_values_keep_the_lower_class_first():
    body, length = pixel_request(np.zeros((1, 3, 2, 2), np.float32),
                                 outputs=[{"name": "scores", "parameters": {"classification": 4}}])  # fmt: skip

    got = Client().infer(body, "tiny-tensor", inference_header_content_length=length)

    assert [element.split(":")[1] for element in got.json["outputs"][0]["data"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("nested", [PIXELS.tolist(), PIXELS.reshape(6, 4).tolist()], ids=["as shaped", "otherwise"])
def test_json_data_may_be_nested(nested):
    tensor = {"name": "pixels", "shape": [2, 3, 2, 2], "datatype": "FP32", "data": nested}

    assert Client().infer({"inputs": [tensor]}, "tiny-tensor").json["outputs"][0]["data"][0] == 1.5


def test_base64_may_have_line_breaks():
    text = base64.encodebytes(b"R" * 200).decode()
    assert "\n" in text
    client = Client()

    client.infer({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]})

    assert client.backend.calls[0]["images"] == [b"R" * 200]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests_and_answers(encoding, pack):
    body, length = image_request(b"Gx" * 100, parameters={"binary_data_output": True})
    plain = Client().infer(body, inference_header_content_length=length)

    got = Client().infer(
        pack(body), inference_header_content_length=length, content_encoding=encoding, accept_encoding=encoding
    )

    assert got.status == 200
    assert got.headers["content-encoding"] == encoding
    unpacked = gzip.decompress(got.body) if encoding == "gzip" else zlib.decompress(got.body)
    assert unpacked == plain.body
    # The length is that of the plain JSON.
    assert got.headers["inference-header-content-length"] == plain.headers["inference-header-content-length"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused(encoding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    client = Client(limits=ServeConfig(max_request_bytes=100_000))

    got = client.infer(pack(bytes(50_000_000)), content_encoding=encoding)

    assert got.status == 413
    assert "100,000" in got.error


def test_a_timeout_shortens_the_deadline_and_never_lengthens_it():
    client = Client(limits=ServeConfig(deadline_s=5))
    now = time.monotonic()

    for timeout_us in (0, 200_000, 3_600_000_000):
        client.infer(json_images(b"R", parameters={"timeout": timeout_us, "priority": 1}))

    default, shorter, longer = (call["deadline"] - now for call in client.backend.calls)
    assert 0.1 < shorter < 1
    assert 4 < default < 6
    assert 4 < longer < 6


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"?", 422, "cannot be read"),
        (b"L", 413, "cannot be read"),
        (b"U", 415, "cannot be read"),
        (b"", 400, "no bytes"),
    ],
    ids=["undecodable", "too large", "unsupported", "empty"],
)
def test_one_bad_image_refuses_the_request_and_is_named(content, status, why):
    got = Client().infer(json_images(b"R", content, b"G"))

    assert (got.status, got.error) == (status, f"image 1: {why}")


def test_a_full_queue_says_when_to_come_back():
    backend = FakeBackend(raises=OverloadedError("the queue is full", retry_after_s=2.5))

    got = Client(backend).infer(json_images(b"R"))

    assert (got.status, got.headers["retry-after"], got.error) == (503, "3", "the queue is full")


def test_a_deadline_that_passed_is_504():
    assert Client(FakeBackend(raises=DeadlineError("too late"))).infer(json_images(b"R")).status == 504


def test_too_many_images_are_refused_before_they_are_read():
    body, length = image_request(*[b"R"] * 5)

    got = Client(limits=ServeConfig(max_images=4)).infer(body, inference_header_content_length=length)

    assert got.status == 413
    assert "at most 4 images" in got.error


IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["UgAA"]}
PIXEL = {"name": "pixels", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": [0] * 12}
MALFORMED = {
    "not JSON": b"{",
    "not UTF-8": b'{"id":"\xff"}',
    "nested without end": b"[" * 100_000,
    "a list": [],
    "no inputs": {},
    "inputs that are none": {"inputs": []},
    "inputs of another type": {"inputs": {"image": 1}},
    "an input of another type": {"inputs": ["image"]},
    "no name": {"inputs": [{**IMAGE, "name": None}]},
    "another name": {"inputs": [{**IMAGE, "name": "picture"}]},
    "a second input": {"inputs": [IMAGE, {**IMAGE, "name": "b"}]},
    "an input twice": {"inputs": [IMAGE, IMAGE]},
    "no datatype": {"inputs": [{**IMAGE, "datatype": None}]},
    "an unknown datatype": {"inputs": [{**IMAGE, "datatype": "FLOAT"}]},
    "another datatype": {"inputs": [{**IMAGE, "datatype": "UINT8", "data": [1]}]},
    "no shape": {"inputs": [{**IMAGE, "shape": None}]},
    "a negative axis": {"inputs": [{**IMAGE, "shape": [-1]}]},
    "an axis of true": {"inputs": [{**IMAGE, "shape": [True]}]},
    "an axis of text": {"inputs": [{**IMAGE, "shape": ["1"]}]},
    "too many axes": {"inputs": [{**IMAGE, "shape": [1] * 9}]},
    "another shape": {"inputs": [{**IMAGE, "shape": [1, 2], "data": ["Ug==", "Ug=="]}]},
    "no axis": {"inputs": [{**IMAGE, "shape": []}]},
    "no image": {"inputs": [{**IMAGE, "shape": [0], "data": []}]},
    "fewer data than the shape": {"inputs": [{**IMAGE, "shape": [2]}]},
    "more data than the shape": {"inputs": [{**IMAGE, "data": ["Ug==", "Ug=="]}]},
    "no data": {"inputs": [{k: v for k, v in IMAGE.items() if k != "data"}]},
    "data that are no list": {"inputs": [{**IMAGE, "data": {}}]},
    "numbers for bytes": {"inputs": [{**IMAGE, "data": [1]}]},
    "uneven nesting": {"inputs": [{**IMAGE, "data": [["Ug=="], "Ug=="]}]},
    "no base64": {"inputs": [{**IMAGE, "data": ["?!"]}]},
    "base64 cut short": {"inputs": [{**IMAGE, "data": ["UgA"]}]},
    "base64 of another alphabet": {"inputs": [{**IMAGE, "data": ["Ü==="]}]},
    "binary data without any": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES",
                                            "parameters": {"binary_data_size": 5}}]},
    "binary data and JSON data": {"inputs": [{**IMAGE, "parameters": {"binary_data_size": 0}}]},
    "a negative size": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES",
                                    "parameters": {"binary_data_size": -1}}]},
    "parameters of another type": {"inputs": [IMAGE], "parameters": []},
    "an id of another type": {"inputs": [IMAGE], "id": 7},
    "an unknown output": {"inputs": [IMAGE], "outputs": [{"name": "nothing"}]},
    "an output without a name": {"inputs": [IMAGE], "outputs": [{}]},
    "an output twice": {"inputs": [IMAGE], "outputs": [{"name": "labels"}, {"name": "labels"}]},
    "a negative classification": {"inputs": [IMAGE],
                                  "outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]},
    "top_k 0": {"inputs": [IMAGE], "parameters": {"top_k": 0}},
    "top_k over the classes": {"inputs": [IMAGE], "parameters": {"top_k": 5}},
    "top_k of text": {"inputs": [IMAGE], "parameters": {"top_k": "many"}},
    "top_k of true": {"inputs": [IMAGE], "parameters": {"top_k": True}},
    "a timeout of text": {"inputs": [IMAGE], "parameters": {"timeout": "soon"}},
    "a negative timeout": {"inputs": [IMAGE], "parameters": {"timeout": -1}},
    "a timeout of 400 digits": {"inputs": [IMAGE], "parameters": {"timeout": "9" * 400}},
    "a sequence": {"inputs": [IMAGE], "parameters": {"sequence_id": 3}},
    "binary output of text": {"inputs": [IMAGE], "parameters": {"binary_data_output": "yes"}},
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests_are_400_with_a_reason(body):
    client = Client()

    got = client.infer(body)

    assert got.status == 400, got.body
    assert 10 < len(got.error) < 500
    assert client.backend.calls == []
    assert client.infer(json_images(b"R")).status == 200


TENSORS = {
    "FP16": {**PIXEL, "datatype": "FP16"},
    "BF16": {**PIXEL, "datatype": "BF16"},
    "FP64": {**PIXEL, "datatype": "FP64"},
    "three axes": {**PIXEL, "shape": [3, 2, 2]},
    "another layout": {**PIXEL, "shape": [1, 2, 2, 3]},
    "another size": {**PIXEL, "shape": [1, 3, 4, 1]},
    "no image": {**PIXEL, "shape": [0, 3, 2, 2], "data": []},
    "no axis": {**PIXEL, "shape": []},
    "text": {**PIXEL, "data": ["0"] * 12},
    "null": {**PIXEL, "data": [None] * 12},
    "true": {**PIXEL, "data": [True] * 12},
    "too few": {**PIXEL, "data": [0] * 11},
    "a number too large for any float": {**PIXEL, "data": [10**400] + [0] * 11},
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_not_the_models_are_400(tensor):
    got = Client().infer({"inputs": [tensor]}, "tiny-tensor")

    assert got.status == 400
    assert "pixels" in got.error or "JSON" in got.error


@pytest.mark.parametrize(
    ("header", "body"),
    [("-1", b"{}"), ("x", b"{}"), ("", b"{}"), ("3", b"{}"), ("9" * 5000, b"{}"), ("1", b"{}"), ("\xb2", b"{}")],
)
def test_header_lengths_that_are_none_are_400(header, body):
    assert Client().infer(body, inference_header_content_length=header).status == 400


def test_bytes_that_belong_to_no_input_are_refused():
    body, length = image_request(b"R")

    got = Client().infer(body + b"more", inference_header_content_length=length)

    assert (got.status, got.error) == (400, "4 bytes of binary data belong to no input")


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        (b"\x01\x00\x00", "end within element 0 of 1"),
        (b"\x05\x00\x00\x00ab", "end within element 0 of 1"),
        (b"\xff\xff\xff\xff", "end within element 0 of 1"),
        (b"\x01\x00\x00\x00Rx", "have 1 bytes after the 1 elements"),
        (b"", "end within element 0 of 1"),
    ],
)
def test_elements_that_do_not_fill_their_bytes_are_refused(binary, says):
    head = json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES",
                                   "parameters": {"binary_data_size": len(binary)}}]}).encode()  # fmt: skip

    got = Client().infer(head + binary, inference_header_content_length=len(head))

    assert got.status == 400
    assert says in got.error


def test_a_shape_of_more_than_all_memory_is_refused_by_its_size():
    tensor = {"name": "pixels", "shape": [2**40, 3, 2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    head = json.dumps({"inputs": [tensor]}).encode()

    assert Client().infer(head, "tiny-tensor", inference_header_content_length=len(head)).status == 413


def test_shared_memory_is_not_offered():
    tensor = {**IMAGE, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 3}}

    got = Client().infer({"inputs": [tensor]})

    assert got.status == 400
    assert "shared memory" in got.error


def test_a_model_that_is_not_ready_says_so():
    got = Client(FakeBackend(is_ready=False)).infer(json_images(b"R"))

    assert got.status == 503
    assert got.headers["retry-after"] == "1"
