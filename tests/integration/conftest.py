"""Fixtures: a local Ray for a module; one S3 server for a session, a proxy before it, a folder of its bucket for a test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pipeline.session.connect import connect
from pipeline.session.local import stop_ray
from tests.support.s3_place import Place
from tests.support.s3_server import FaultProxy, S3Server, running_proxy, running_s3, serves_s3


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Start a local Ray for a module's tests, whose runs use it as they would use a notebook's."""
    connect(None)
    yield
    stop_ray()  # and not ray.shutdown(), which leaves our patches of Ray in this process


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 server with an empty bucket."""
    if not serves_s3():
        pytest.skip("moto is not installed (pip install 'moto[server,s3]')")
    with running_s3(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Point the environment of this process, and of those it starts, at the server."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Put a proxy between the environment and the server; it passes all on until its rule says otherwise."""
    with running_proxy(s3) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def place(s3: S3Server, request: pytest.FixtureRequest) -> Place:
    """Return an empty folder of the bucket."""
    # Of the test's own name: what a proxy does to a call depends on its path, and must not on the tests before.
    name = re.sub(r"\W+", "-", request.node.name)
    return Place(s3, name)
