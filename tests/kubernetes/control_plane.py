"""A control plane of one machine: etcd, kube-apiserver, and KubeRay's operator; no kubelet and no controllers."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kubernetes.programs import built, module_folder

TOKEN = "of-the-tests"
SHARED_CRDS = Path(__file__).parents[3] / "shared" / "kuberay-crds"
KINDS = {"RayCluster", "RayJob", "RayService", "RayCronJob"}
CLUSTER_SCOPED = ("Namespace", "CustomResourceDefinition", "GatewayClass")
Found = TypeVar("Found")


class Api:
    """The API server, strictly: an unknown field is an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"
        self.session.verify = False  # its own certificate, on this machine's loopback
        self.session.trust_env = False  # a bundle of certificates in the environment would come before that

    def call(self, method: str, path: str, body: Any = None, **params: str) -> requests.Response:
        """Send one request."""
        kind = {"PATCH": "application/merge-patch+json"}.get(method, "application/json")
        return self.session.request(
            method, f"{self.url}/{path}", json=body, params=params, headers={"Content-Type": kind}, timeout=60
        )

    def create(self, manifest: dict[str, Any], *, dry_run: bool = False) -> requests.Response:
        """Create a resource, in the namespace that it names."""
        group = manifest["apiVersion"]
        plural = self.kinds(group)[manifest["kind"]]
        namespace = manifest["metadata"].get("namespace", "default")
        scope = "" if manifest["kind"] in CLUSTER_SCOPED else f"/namespaces/{namespace}"
        params = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self.call("POST", f"{self.prefix(group)}{scope}/{plural}", manifest, **params)

    def kinds(self, group: str) -> dict[str, str]:
        """Return the kinds of a group, with their names in paths; none where there is no such group."""
        resources = self.call("GET", self.prefix(group)).json().get("resources", [])
        return {one["kind"]: one["name"] for one in resources if "/" not in one["name"]}

    @staticmethod
    def prefix(group: str) -> str:
        """Return where a group of resources is."""
        return f"apis/{group}" if "/" in group else f"api/{group}"

    def list(self, what: str, **params: str) -> list[Any]:
        """List resources, as `v1/namespaces/default/pods`."""
        group, _, rest = what.partition("/namespaces/")
        found: list[Any] = self.call("GET", f"{self.prefix(group)}/namespaces/{rest}", **params).json()["items"]
        return found


def wait_for(what: Callable[[], Found | None], why: str, seconds: float = 120) -> Found:
    """Return what a function returns, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except requests.ConnectionError:
            pass
        time.sleep(0.3)
    raise TimeoutError(why)


@contextmanager
def running(program: Path, *words: str, log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """Run a program until the end of the block."""
    with log.open("w") as file:
        process = subprocess.Popen([program, *words], stdout=file, stderr=file, env={**os.environ, **(env or {})})
        try:
            yield
            assert process.poll() is None, log.read_text()[-2000:]
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def api_server(folder: Path) -> Iterator[Api]:
    """Run etcd and kube-apiserver, with KubeRay's resource definitions."""
    client, peer, port = free_port(), free_port(), free_port()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "sa.key").write_bytes(pem)
    (folder / "tokens.csv").write_text(f"{TOKEN},tests,tests,system:masters\n")
    etcd = [
        f"--data-dir={folder / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}", "--unsafe-no-fsync",
        f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]  # fmt: skip
    server = [
        f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1", f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}", f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}", "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
        # No controller makes the accounts that it asks for.
        "--disable-admission-plugins=ServiceAccount",
    ]  # fmt: skip
    api = Api(f"https://127.0.0.1:{port}")
    with (
        running(built("etcd"), *etcd, log=folder / "etcd.log"),
        running(built("kube-apiserver"), *server, log=folder / "kube-apiserver.log"),
    ):
        wait_for(lambda: api.call("GET", "readyz").ok, "kube-apiserver is not ready; see kube-apiserver.log", 300)
        for file in resource_definitions():
            done = api.create(yaml.load(file.read_text(), Loader=yaml.CSafeLoader))
            assert done.ok, done.text
        wait_for(lambda: api.kinds("ray.io/v1").keys() >= KINDS, "KubeRay's kinds are not there")
        for namespace in ("default", "vision"):
            api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        yield api


def resource_definitions() -> list[Path]:
    """Return KubeRay's resource definitions: the newest that are at hand, the operator's own of the other kinds."""
    own = module_folder("github.com/ray-project/kuberay/ray-operator") / "config" / "crd" / "bases"
    found = {file.name: file for folder in (own, SHARED_CRDS) for file in folder.glob("ray.io_*.yaml")}
    return sorted(found.values())


@contextmanager
def operator(api: Api, folder: Path) -> Iterator[None]:
    """Run KubeRay's operator."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": api.url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "tests", "user": {"token": TOKEN}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    words = [
        f"--kubeconfig={folder / 'kubeconfig'}", "--metrics-addr=127.0.0.1:0", "--feature-gates=RayCronJob=true",
        f"--health-probe-bind-address=127.0.0.1:{free_port()}", "--enable-leader-election=false",
    ]  # fmt: skip
    with running(built("ray-operator"), *words, log=folder / "ray-operator.log"):
        yield
