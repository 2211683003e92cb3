"""Every bad file comes to its own error, and none takes this process down with it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import models.errors
from models.catalog import load_spec, model_names
from models.errors import ArtifactError, SignatureError
from models.register.preprocessing import NAMED
from models.register.register import Registration, register_model
from models.sandbox.sandbox import read_signature, run_trial, try_join
from models.spec import Precision
from tests.support.hostile_models import CASES, external, good_model, save
from tests.support.tiny_model import ENTRY


def add(path, labels, **more):
    return register_model(Registration(path=path, name="bad", labels=str(labels), recipe=NAMED["unit"], **more))


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "three.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_refused_with_its_reason_and_not_registered(name, tmp_path, labels, monkeypatch):
    hostile = CASES[name]
    folder = tmp_path / "model"
    folder.mkdir()
    path = hostile.build(folder)
    if "without-end" in name:
        monkeypatch.setattr("models.register.register.run_trial", lambda *a: run_trial(*a, timeout_s=5.0))

    with pytest.raises(getattr(models.errors, hostile.error)) as caught:
        add(path, labels)

    assert hostile.message in str(caught.value)
    assert "bad" not in model_names()


def test_there_are_as_many_cases_as_the_documentation_says():
    assert len(CASES) >= 40


def test_the_file_that_all_cases_are_made_of_is_a_good_one(tmp_path, labels):
    spec, remarks = add(save(tmp_path, good_model()), labels, replace=True)

    assert (spec.input.name, spec.output.kind, remarks) == ("x", "logits", [])
    from models.register.register import remove_model

    remove_model("bad")


def own_model(folder, model):
    path = save(folder, model)
    entry = ENTRY.replace('"pixels"', '"x"').replace('"scores"', '"y"').replace('embedding = "means"\n', "")
    path.with_suffix(".toml").write_text(entry)
    (folder / "colours.txt").write_text("red\ngreen\nblue\n")
    return path, load_spec(str(path))


def test_a_model_given_by_its_path_is_tried_in_a_process_of_its_own_too(tmp_path):
    path, _ = own_model(tmp_path, good_model())
    evil = CASES["an-operator-of-another-library"].build(tmp_path)
    assert evil == path
    from models.inference.classifier import Classifier

    with pytest.raises(SignatureError, match="needs operators of another library"):
        Classifier(load_spec(str(path)), precision=Precision.FP32)
    with pytest.raises(SignatureError, match="needs operators of another library"):
        read_signature(path)


def test_weights_beside_a_model_given_by_its_path_point_to_the_command_that_joins_them(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(12))
    _, spec = own_model(tmp_path, good_model())
    path = external(tmp_path, "w.bin")

    with pytest.raises(ArtifactError, match=r"keeps weights in another file, 'w\.bin'; `shardlabel models add`"):
        try_join(load_spec(str(path)), path)
    assert spec.name == "bad"


def test_a_crash_of_the_child_is_an_error_that_names_the_signal(tmp_path, monkeypatch):
    path, spec = own_model(tmp_path, good_model())
    real = subprocess.run
    crash = [shutil.which("sh"), "-c", "kill -SEGV $$"]
    monkeypatch.setattr(
        "models.sandbox.sandbox.subprocess.run", lambda _command, **more: real(crash, **{**more, "check": False})
    )

    with pytest.raises(ArtifactError, match=r"crashed the child process that tried to load it \(SIGSEGV\)"):
        try_join(spec, path)
