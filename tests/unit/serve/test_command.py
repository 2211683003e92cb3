"""`shardlabel serve`: what options and a file of settings say reaches the endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError
from serve.config import ServeOptions
from tests.support.certificates import write_certificate


@pytest.fixture
def told(monkeypatch):
    """Run the command up to where it would start, and return what it would start by."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: str) -> ServeOptions:
        seen = []
        monkeypatch.setattr("serve.local.launch.running", lambda options, say: seen.append(options) or 1 / 0)
        done = CliRunner().invoke(build_app(), ["serve", *words])
        if isinstance(done.exception, ConfigError):
            raise done.exception
        assert seen, done.output
        return seen[0]

    return run


def file_of(folder: Path, **settings: object) -> list[str]:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["--config", str(path)]


def test_a_file_says_what_options_say(told, tmp_path):
    cert, key = write_certificate(tmp_path)
    settings = {
        "model": "resnet18-v2",
        "host": "0.0.0.0",
        "port": 8123,
        "grpc-port": 0,
        "haproxy": True,
        "tls_cert": str(cert),
        "tls-key": str(key),
        "top_k": 3,
        "max-queue": 99,
        "downscale_delay_s": 5,
        "access-log": str(tmp_path / "log"),
    }
    words = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]

    by_file, by_words = told(*file_of(tmp_path, **settings)), told(*words)

    assert by_file == by_words
    assert (by_file.model, by_file.top_k, by_file.max_queue, by_file.downscale_delay_s) == (("resnet18-v2",), 3, 99, 5)
    assert (by_file.url, by_file.grpc_port, by_file.tls_key) == ("https://127.0.0.1:8123", 0, key)


def test_options_come_before_the_file(told, tmp_path):
    file = file_of(tmp_path, port=8123, haproxy=True, **{"top-k": 3, "deadline_s": 4})

    options = told(*file, "--port", "8124", "--no-haproxy", "--top-k", "9")

    assert (options.port, options.haproxy, options.top_k, options.deadline_s) == (8124, False, 9, 4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param({"max-replica": 3}, "unknown option 'max_replica'; did you mean max-replicas?", id="near"),
        pytest.param({"zzz": 3}, "unknown option 'zzz'; known options are", id="far"),
        pytest.param({"port": 99999}, "--port", id="port"),
        pytest.param({"max_queue": 1}, "max_queue", id="of two"),
        pytest.param({"access_log": "-"}, "--access-log must be off or a file", id="access log"),
        pytest.param({"tls_cert": "a.pem"}, "--tls-cert and --tls-key belong together", id="half a pair"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_before_anything_starts(told, tmp_path, settings, says):
    with pytest.raises(ConfigError) as caught:
        told(*file_of(tmp_path, **settings))

    assert says in str(caught.value)


def test_paths_reach_the_replicas_whole(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    options = told(*file_of(tmp_path, **{"access-log": "access.log", "api_keys_file": "keys.txt"}))

    assert options.access_log == str(tmp_path / "access.log")
    assert options.api_keys_file == tmp_path / "keys.txt"
