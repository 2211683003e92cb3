"""`shardlabel doctor`: what a bug report needs, whatever is broken, and no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(build_app(), ["doctor", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_it_says_what_the_machine_has_and_what_auto_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nowhere")

    facts = json.loads(run("--json"))

    assert facts["cpus"]["count"] >= 1
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert facts["gpus"] == []
    assert facts["cache"]["folder"] == str(tmp_path / "home")
    assert facts["cache"]["models"] == ["efficientnet-lite0 int8"]
    assert facts["auto"]["models"]["efficientnet-lite0"].startswith("efficientnet-lite0 int8 on CPU")
    assert "resnet18-v2" in facts["auto"]["models"]
    assert f"of {facts['cpus']['count']} CPUs" in facts["auto"]["label"]


def test_credentials_are_named_and_never_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:proxysecret@proxy:3128")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "tokensecret")
    (tmp_path / ".config/gcloud").mkdir(parents=True)
    (tmp_path / ".config/gcloud/application_default_credentials.json").write_text('{"private_key": "filesecret"}')

    text = run()

    assert "secret" not in text.lower()
    assert "S3: AWS_ACCESS_KEY_ID; GCS: ~/.config/gcloud/application_default_credentials.json; Azure: none" in text
    (named,) = [line for line in text.splitlines() if line.startswith("environment")]
    assert {"HTTPS_PROXY", "RAY_AUTH_TOKEN"} <= set(named.removeprefix("environment").strip().split(", "))


def test_a_gpu_is_seen_and_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771 MiB, 570.1'")

    facts = json.loads(run("--json"))

    assert facts["gpus"] == [{"name": "NVIDIA H200", "memory": "143771 MiB", "driver": "570.1"}]
    assert "on GPU" in facts["auto"]["models"]["resnet18-v2"]


def test_what_is_broken_is_said_and_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'Driver/library version mismatch'; exit 18")

    lines = dict(line.split(None, 1) for line in run().splitlines() if not line.startswith(" "))

    assert lines["gpus"] == "unknown: OSError: nvidia-smi failed: Driver/library version mismatch"
    assert "CPUExecutionProvider" in lines["providers"]
