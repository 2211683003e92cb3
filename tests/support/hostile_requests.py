"""Requests of kilobytes that try to take gigabytes of memory or minutes of time: one function for each.

`CORPUS` has the HTTP requests, `GRPC_CORPUS` the messages for gRPC's ModelInfer (a client compresses them with gRPC's own
gzip). The server must not spend much memory or time on any of them, and must go on answering other requests.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.oip.grpc.messages import message_class

MODEL = "efficientnet-lite0"
CLASSIFY = "/v1/classify"
INFER = f"/v2/models/{MODEL}/infer"
INFER_TENSOR = f"/v2/models/{MODEL}-tensor/infer"
# Slightly below the default of max_request_bytes; larger bodies are refused for their size alone.
FULL = 20 * 2**20 - 4096
BOUNDARY = b"hostile"
FORM = "multipart/form-data; boundary=hostile"


@dataclass(frozen=True)
class Hostile:
    """One HTTP request; `headers` are those besides the Content-Type."""

    path: str
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


CORPUS: dict[str, Callable[[], Hostile]] = {}
GRPC_CORPUS: dict[str, Callable[[], bytes]] = {}


def _hostile(build: Callable[[], Hostile]) -> Callable[[], Hostile]:
    CORPUS[build.__name__] = functools.cache(build)
    return CORPUS[build.__name__]


def _hostile_message(build: Callable[[], bytes]) -> Callable[[], bytes]:
    GRPC_CORPUS[build.__name__] = functools.cache(build)
    return GRPC_CORPUS[build.__name__]


def packed(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> Hostile:
    return Hostile(path, gzip.compress(body), content_type, {"Content-Encoding": "gzip", **headers})


def filled(head: bytes, piece: bytes, tail: bytes, size: int = FULL) -> bytes:
    """Repeat a piece between a head and a tail, up to `size` bytes in all."""
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


# JSON of /v1/classify.


@_hostile
def empty_lists() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[', b"[],", b"[]]}"))


@_hostile
def empty_strings() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[', b'"",', b'""]}'))


@_hostile
def empty_objects() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[', b"{},", b"{}]}"))


@_hostile
def nested_lists() -> Hostile:
    return packed(CLASSIFY, b"[" * FULL)


@_hostile
def nested_objects() -> Hostile:
    return packed(CLASSIFY, filled(b"", b'{"a":', b"1"))


@_hostile
def long_number() -> Hostile:
    return packed(CLASSIFY, filled(b'{"top_k":', b"1", b"}"))


@_hostile
def long_fraction() -> Hostile:
    return packed(CLASSIFY, filled(b'{"top_k":0.', b"7", b"}"))


@_hostile
def many_keys() -> Hostile:
    # Many different keys, which still compress well.
    keys = ",".join(f'"{number:07}":0' for number in range(FULL // 12 - 8))
    return packed(CLASSIFY, b"{" + keys.encode() + b"}")


@_hostile
def wide_string() -> Hostile:
    return packed(CLASSIFY, filled('{"images":[{"b64":"\N{GRINNING FACE}'.encode(), b"a", b'"}]}'))


@_hostile
def escapes() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[{"b64":"', b"\\u0041", b'"}]}'))


@_hostile
def line_breaks_in_base64() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[{"b64":"', b"A\\n", b'"}]}'))


@_hostile
def blanks() -> Hostile:
    return packed(CLASSIFY, filled(b"{", b" ", b"}"))


@_hostile
def base64_of_nothing_much() -> Hostile:
    return packed(CLASSIFY, filled(b'{"images":[{"b64":"', b"AAAA", b'"}]}'))


# Forms and raw bodies.


@_hostile
def many_parts() -> Hostile:
    part = b'--hostile\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n'
    return packed(CLASSIFY, part * 100_000 + b"--hostile--\r\n", FORM)


@_hostile
def endless_part_header() -> Hostile:
    return packed(CLASSIFY, filled(b"--hostile\r\n", b"a: b\r\n", b""), FORM)


@_hostile
def nearly_a_boundary() -> Hostile:
    head = b'--hostile\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    return packed(CLASSIFY, filled(head, b"\r\n--hostil", b""), FORM)


@_hostile
def empty_image_of_20_mib() -> Hostile:
    return packed(CLASSIFY, filled(b"\x89PNG\r\n\x1a\n", b"\x00", b""), "image/png")


@_hostile
def deflate_bomb() -> Hostile:
    return Hostile(CLASSIFY, zlib.compress(bytes(100 * 2**20)), "image/jpeg", {"Content-Encoding": "deflate"})


# The Open Inference Protocol.


@_hostile
def many_images_to_embed() -> Hostile:
    return packed("/v1/embeddings", filled(b'{"input":[', b'"",', b'""]}'))


@_hostile
def many_options() -> Hostile:
    return packed(f"/models/{MODEL}", filled(b'{"inputs":"","options":{"a":[', b"0,", b"0]}}"))


def _tensor(name: str, datatype: str, shape: str) -> bytes:
    return f'{{"inputs":[{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":['.encode()


@_hostile
def numbers() -> Hostile:
    return packed(INFER_TENSOR, filled(_tensor("images", "FP32", "[64,3,224,224]"), b"0,", b"0]}]}"))


@_hostile
def lists_for_numbers() -> Hostile:
    return packed(INFER_TENSOR, filled(_tensor("images", "FP32", "[1,3,224,224]"), b"[],", b"[]]}]}"))


@_hostile
def strings_for_images() -> Hostile:
    return packed(INFER, filled(_tensor("image", "BYTES", "[64]"), b'"",', b'""]}]}'))


@_hostile
def many_inputs() -> Hostile:
    return packed(INFER, filled(b'{"inputs":[', b"{},", b"{}]}"))


@_hostile
def many_parameters() -> Hostile:
    keys = ",".join(f'"{number:07}":[]' for number in range(FULL // 13 - 8))
    return packed(INFER, b'{"parameters":{' + keys.encode() + b'},"inputs":[]}')


@_hostile
def lists_in_a_binary_requests_head() -> Hostile:
    body = filled(b'{"inputs":[', b"[],", b"[]]}")
    return packed(INFER, body, "application/octet-stream", **{"Inference-Header-Content-Length": str(len(body))})


@_hostile
def claimed_sizes() -> Hostile:
    head = json.dumps(
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2**62, 2**62],
                     "parameters": {"binary_data_size": 2**62}}]}
    ).encode()  # fmt: skip
    return Hostile(
        INFER, head + b"\xff" * 64, "application/octet-stream", {"Inference-Header-Content-Length": str(len(head))}
    )


@_hostile
def many_empty_elements() -> Hostile:
    content = bytes(FULL - 400)
    head = json.dumps(
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(content) // 4],
                     "parameters": {"binary_data_size": len(content)}}]}
    ).encode()  # fmt: skip
    return packed(
        INFER, head + content, "application/octet-stream", **{"Inference-Header-Content-Length": str(len(head))}
    )


@_hostile
def lists_for_the_index() -> Hostile:
    return packed("/v2/repository/index", filled(b'{"ready":[', b"[],", b"[]]}"))


# gRPC: messages for ModelInfer. Field numbers are those of serve/oip/grpc/inference.proto.


def _head() -> bytes:
    return bytes(message_class("ModelInferRequest")(model_name=MODEL).SerializeToString())


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@_hostile_message
def empty_inputs() -> bytes:
    return filled(_head(), _field(5, b""), b"")


@_hostile_message
def empty_raw_contents() -> bytes:
    return filled(_head(), _field(7, b""), b"")


@_hostile_message
def empty_bytes_contents() -> bytes:
    return _head() + _field(5, _field(5, filled(b"", _field(8, b""), b"", FULL - 64)))


@_hostile_message
def small_integers() -> bytes:
    return _head() + _field(5, _field(5, _field(5, bytes(FULL - 64))))


@_hostile_message
def floats() -> bytes:
    tensor = message_class("ModelInferRequest.InferInputTensor")(
        name="images", datatype="FP32", shape=[1, 3, 224, 224]
    ).SerializeToString()
    name = message_class("ModelInferRequest")(model_name=f"{MODEL}-tensor").SerializeToString()
    return bytes(name) + _field(5, bytes(tensor) + _field(5, _field(6, bytes((FULL - 256) // 4 * 4))))


@_hostile_message
def axes() -> bytes:
    return _head() + _field(5, _field(3, bytes(FULL - 64)))


@_hostile_message
def parameters() -> bytes:
    return filled(_head(), _field(4, b""), b"")


@_hostile_message
def more_than_a_request_may_have() -> bytes:
    return _head() + _field(7, bytes(60 * 2**20))
