"""The programs that the tests run, built once from pinned Go modules (go.mod) into .kubernetes/bin of the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
BIN = HERE.parents[1] / ".kubernetes" / "bin"
PACKAGES = {
    "validator": "./validator",
    "ray-operator": "github.com/ray-project/kuberay/ray-operator",
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
}
NO_NETWORK = ("dial tcp", "no such host", "connection refused", "i/o timeout", "proxyconnect", "module lookup disabled")


def built(name: str) -> Path:
    """Return a program, built where it is older than its sources; skips the test where Go or the network is missing."""
    program = BIN / name
    sources = [HERE / "go.mod", *([HERE / "validator" / "main.go"] if name == "validator" else [])]
    if program.exists() and all(program.stat().st_mtime > source.stat().st_mtime for source in sources):
        return program
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds kube-apiserver, etcd and KubeRay's operator")
    BIN.mkdir(parents=True, exist_ok=True)
    flags = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(program)]
    done = subprocess.run(["go", "build", *flags, PACKAGES[name]], cwd=HERE, capture_output=True, text=True)
    if done.returncode and any(word in done.stderr for word in NO_NETWORK):
        pytest.skip(f"the Go modules cannot be fetched: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    os.utime(program)
    return program


def module_folder(module: str) -> Path:
    """Return where a module's files lie."""
    done = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", module], cwd=HERE, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def operators_verdicts(manifests: list[Any]) -> list[str]:
    """Return what KubeRay's own rules say of manifests; empty where they pass."""
    text = json.dumps(manifests, default=str)
    done = subprocess.run([built("validator")], input=text, capture_output=True, text=True, check=True)
    said: list[str] = json.loads(done.stdout)
    return said
