"""docs/troubleshooting.md quotes the messages that people meet: those that are easily brought about are, and found there."""

from __future__ import annotations

import re
import socket
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ShardlabelError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LITE = ("--model", "efficientnet-lite0")


def quoted() -> Iterator[re.Pattern[str]]:
    """Yield the page's quotes as patterns, in which `...` and numbers stand for anything."""
    for quote in re.findall(r"\*\*`([^`]+)`\*\*", PAGE):
        pieces = [re.sub(r"\d+", r"\\d+", re.escape(piece.strip())) for piece in quote.split("...")]
        yield re.compile(".*".join(pieces), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("pipeline.session.connect.ANSWER_S", 0.2)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with tarfile.open("a.tar", "w"):
        pass
    pq.write_table(pa.table({"x": [1]}), "none.parquet")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), "two.parquet")
    (tmp_path / "my.onnx").write_bytes(np.zeros(4).tobytes())
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["models", "pull", "resnet18-v2"], id="no network"),
        pytest.param(["label", "a.tar", "-o", "out", "--model", "nope"], id="no such model"),
        pytest.param(["label", "a.tar", "-o", "out", "--model", "my.onnx"], id="no entry"),
        pytest.param(["label", "a.tar", "-o", "out", *LITE, "--device", "cuda"], id="no GPU"),
        pytest.param(["label", "b.tar", "-o", "out", *LITE], id="no SOURCE"),
        pytest.param(["label", "none.parquet", "-o", "out", *LITE], id="no images"),
        pytest.param(["label", "two.parquet", "-o", "out", *LITE], id="which images"),
        pytest.param(["label", "a.tar", "-o", "out", *LITE, "--address", "127.0.0.1:9"], id="no cluster"),
        pytest.param(["serve", *LITE, "--port", "PORT"], id="port"),
    ],
)
def test_a_message_that_people_meet_is_on_the_page(folder: Path, words: list[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
        done = CliRunner().invoke(build_app(), [port if word == "PORT" else word for word in words])

    assert isinstance(done.exception, ShardlabelError), done.output
    assert any(quote.search(str(done.exception)) for quote in quoted()), str(done.exception)
