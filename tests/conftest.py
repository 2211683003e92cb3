"""Fixtures: a tiny model whose labels can be worked out by hand, shards of coloured images, one local Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that others use too may take any time for an example.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# Before anything starts Ray: its workers take 12 s longer where Python may not keep its bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SAMPLE_DATA = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' model cache apart from the user's."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("SHARDLABEL_HOME")
    os.environ["SHARDLABEL_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["SHARDLABEL_HOME"]
    else:
        os.environ["SHARDLABEL_HOME"] = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX file that labels an image by its strongest colour channel: red, green or blue."""
    from tests.support.tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Return the folder of the 500 sample images, which are not in this repository."""
    if not SAMPLE_DATA.is_dir():
        pytest.skip(f"the sample images are not here: {SAMPLE_DATA}")
    return SAMPLE_DATA
