"""What lies in the cache beside downloads: models that were added, quantised files, joined graphs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from models.catalog import load_spec, model_names
from models.errors import ArtifactError, ConfigError
from models.graph.cache import load_joined_graph
from models.inference.classifier import Classifier
from models.register.overlay import register_artifacts
from models.register.preprocessing import NAMED
from models.register.register import Registration, register_model
from models.spec import Precision
from models.store.files import artifact_path, home
from tests.support.hostile_models import good_model, save


@pytest.fixture
def wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDLABEL_HOME", str(tmp_path / "home"))
    (tmp_path / "l.txt").write_text("red\ngreen\nblue\n")
    return Registration(save(tmp_path, good_model()), "mine", str(tmp_path / "l.txt"), NAMED["unit"])


def full_disk(*_args, **_more):
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_leaves_no_half_of_a_model(wanted, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("models.store.files.os.fsync", full_disk)
        with pytest.raises(ArtifactError, match="the disk is full"):
            register_model(wanted)

    assert "mine" not in model_names()
    assert not list(home().rglob("*.tmp"))
    register_model(wanted)
    assert "mine" in model_names()


def test_a_process_killed_before_the_entry_leaves_nothing_that_is_found(wanted, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("tomli_w.dump", full_disk)
        with pytest.raises(ArtifactError):
            register_model(wanted)

    assert "mine" not in model_names()
    register_model(wanted)
    assert Classifier(load_spec("mine"), precision=Precision.FP32, top_k=1).num_classes == 3


def test_of_two_processes_that_add_one_name_one_does(wanted):
    command = [
        sys.executable, "-m", "cluster.cli", "models", "add", str(wanted.path), "--name", "mine",
        "--labels", wanted.labels, "--preprocess", "unit",
    ]  # fmt: skip
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]

    assert sorted(code for _, code in ends) == [0, 2], ends
    assert any("this name is already registered" in text for text, _ in ends)
    assert Classifier(load_spec("mine"), precision=Precision.FP32, top_k=1).num_classes == 3


def test_a_wrong_byte_in_an_added_model_is_found(wanted):
    spec, _ = register_model(wanted)
    path = artifact_path(spec.artifact(Precision.FP32))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"has SHA-256 .*run `shardlabel models add --replace` again"):
        Classifier(load_spec("mine"), precision=Precision.FP32)


def test_a_wrong_byte_in_what_was_quantised_names_the_command_that_makes_it(wanted):
    spec, _ = register_model(wanted)
    register_artifacts(spec, {Precision.INT8: (b"an int8 file", "a note")})
    spec = load_spec("mine")
    artifact_path(spec.artifact(Precision.INT8)).unlink()

    with pytest.raises(ArtifactError, match=r"build it with `shardlabel models quantize mine [^`]*`, or import"):
        Classifier(spec, precision=Precision.INT8)


def test_a_damaged_overlay_is_an_error_that_names_it(wanted):
    register_model(wanted)
    (home() / "overlays").mkdir()
    (home() / "overlays" / "mine.toml").write_text("[artifacts.int8]\nfile = 3\n")

    with pytest.raises(ConfigError, match=r"overlays/mine\.toml is damaged .*delete it"):
        load_spec("mine")


def test_joined_graphs_that_killed_processes_left_half_written_go(wanted):
    spec, _ = register_model(wanted)
    artifact = spec.artifact(Precision.FP32)
    graph = load_joined_graph(spec, artifact, artifact_path(artifact))
    (cached,) = (home() / "graphs").glob("*.onnx")
    left = cached.with_name(f"{cached.name}.0123.tmp")
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 3600,) * 2)
    cached.unlink()

    assert load_joined_graph(spec, artifact, artifact_path(artifact)) == graph
    assert not left.exists()
