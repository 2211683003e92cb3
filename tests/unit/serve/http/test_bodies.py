"""Bodies and deadlines of requests: how much of them is read, unpacked and held, and for how long one is waited for."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from serve.config import ServeConfig
from serve.model.models import Models
from serve.routes import build_asgi
from tests.support.asgi_client import Response, request
from tests.support.fake_backend import FakeBackend

JPEG = b"\xff\xd8\xff" + b"\0" * 3
OTHER = b"\xff\xd8\xff" + b"\0" * 4


def post(body: bytes, *, backend: FakeBackend | None = None, **more) -> Response:
    config = ServeConfig(model="efficientnet-lite0", **more.pop("settings", {}))
    return asyncio.run(
        request(build_asgi(Models(backend or FakeBackend()), config), "POST", "/v1/classify", body, **more)
    )


@pytest.mark.parametrize("chunk", [None, 10])
def test_too_many_bytes_are_413_whether_announced_or_not(chunk):
    settings = {"max_request_bytes": 100}

    assert post(b"x" * 101, settings=settings, chunk=chunk).status == 413
    assert post(b"x" * 101, settings=settings, chunk=chunk, content_length="101").status == 413
    assert post(JPEG + b"x" * 94, settings=settings, chunk=chunk).status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
def test_a_packed_body_is_unpacked(coding):
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(OTHER),
        "deflate": zlib.compress(OTHER),
        "raw deflate": raw.compress(OTHER) + raw.flush(),
    }[coding]
    backend = FakeBackend()

    response = post(packed, content_encoding=coding.split()[-1], backend=backend)

    assert response.status == 200
    assert backend.seen == [OTHER]


def test_a_packed_body_may_not_unpack_to_more_than_the_limit():
    bomb = gzip.compress(b"\0" * 50_000_000)

    response = post(bomb, content_encoding="gzip", settings={"max_request_bytes": 1_000_000})

    assert response.status == 413


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [("gzip", b"x", 400), ("gzip", gzip.compress(JPEG, mtime=0)[:-3], 400),
     ("gzip", gzip.compress(JPEG, mtime=0) + b"x", 400), ("deflate", b"\x78\x9cxx", 400),
     ("br", JPEG, 415), ("gzip, gzip", JPEG, 415), ("gzip", b"", 400)],
)  # fmt: skip
def test_a_body_that_does_not_unpack_is_refused(coding, body, status):
    assert post(body, content_encoding=coding).status == status


def test_the_deadline_can_be_shortened_by_a_header():
    slow = FakeBackend(delay_s=0.3)

    assert post(JPEG, backend=slow, x_request_timeout_seconds="0.1").status == 504
    assert post(JPEG, backend=slow, x_shardlabel_timeout_seconds="5e-324").status == 504
    assert post(JPEG, backend=slow, x_request_timeout_seconds="5").status == 200
    assert post(JPEG, backend=slow, settings={"deadline_s": 0.2}, x_request_timeout_seconds="5").status == 504


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf", ""])
def test_a_deadline_that_is_no_positive_number_is_400(value):
    assert post(JPEG, x_request_timeout_seconds=value).status == 400


def test_a_client_that_went_away_is_not_answered():
    backend = FakeBackend()

    response = post(JPEG, backend=backend, gone=True)

    assert response.status == 0
    assert not backend.seen


def test_bodies_in_progress_are_bounded_together_and_forgotten_when_answered():
    app = build_asgi(Models(FakeBackend(delay_s=0.2)), ServeConfig(max_request_bytes=910, max_body_memory=2800))
    image = JPEG + b"\0" * 900

    async def many():
        first = await asyncio.gather(*[request(app, "POST", "/v1/classify", image) for _ in range(5)])
        again = await request(app, "POST", "/v1/classify", image)
        return [r.status for r in first], again.status, first[-1]

    statuses, again, refused = asyncio.run(many())

    assert statuses == [200, 200, 200, 503, 503]
    assert "retry-after" in refused.headers
    assert again == 200
