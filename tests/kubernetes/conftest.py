"""One control plane for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.control_plane import Api, api_server, operator


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the programs write their logs."""
    return tmp_path_factory.mktemp("control-plane")


@pytest.fixture(scope="session")
def api(folder: Path) -> Iterator[Api]:
    """Return an API server that knows KubeRay's resources."""
    with api_server(folder) as found:
        yield found


@pytest.fixture(scope="session")
def with_operator(api: Api, folder: Path) -> Iterator[Api]:
    """Return the same API server, watched by KubeRay's operator."""
    with operator(api, folder):
        yield api
