"""Fixtures: one local Ray for all; a server of each object store for a session, a proxy and a folder for a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.session.connect import connect
from pipeline.session.local import stop_ray
from tests.support.azure_server import azurite, running_azure
from tests.support.gcs_server import running_gcs
from tests.support.object_server import ObjectServer
from tests.support.s3_place import Place
from tests.support.s3_server import FaultProxy, running_proxy, running_s3, serves_s3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: those with a Ray of their own, those that share one, which is started once then, and all others.

    Files are dealt out in this order to whoever is free (`make test`), so that the short ones fill the end.
    """
    here = str(Path(__file__).parent)
    shares = {item.path for item in items if "one_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (not str(item.path).startswith(here), item.path in shares))


@pytest.fixture(scope="package")
def ray_ends() -> Iterator[None]:
    """Stop this process's local Ray after the last test of this folder."""
    yield
    stop_ray()  # and not ray.shutdown(), which leaves our patches of Ray in this process


@pytest.fixture
def one_ray(ray_ends: None) -> None:
    """Have runs use one local Ray, as they use a notebook's; it is started where the test before has left none."""
    connect(None)


@dataclass
class Servers:
    """One server of each kind for a session, started when it is first asked for."""

    folder: Path
    stack: ExitStack
    running: dict[str, ObjectServer] = field(default_factory=dict)

    def of(self, kind: str) -> ObjectServer:
        if kind not in self.running:
            missing = {"s3": not serves_s3() and "moto", "az": azurite() is None and "azurite", "gs": False}[kind]
            if missing:
                pytest.skip(f"{missing} is not installed (make test installs it)")
            run = {"s3": running_s3, "az": running_azure, "gs": running_gcs}[kind]
            self.running[kind] = self.stack.enter_context(run(self.folder / kind))
        return self.running[kind]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("stores"), stack)


@pytest.fixture
def kind() -> str:
    """Return which object store a test is about; some have it as a parameter."""
    return "s3"


@pytest.fixture
def store(servers: Servers, kind: str, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """Point the environment of this process, and of those it starts, at the server."""
    server = servers.of(kind)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxy(store: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Put a proxy between the environment and the server; it passes all on until its rule says otherwise."""
    with running_proxy(store) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def place(store: ObjectServer, request: pytest.FixtureRequest) -> Place:
    """Return an empty folder of the bucket."""
    # Of the test's own name: what a proxy does to a call depends on its path, and must not on the tests before.
    name = re.sub(r"\W+", "-", request.node.name)
    return Place(store, name)
