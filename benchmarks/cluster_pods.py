"""A cluster of pods without Kubernetes: what `cluster_rehearsal` rehearses on, and what an operator does for it."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster_stand import write_source
from cluster.manifests.render import Target, render
from cluster.manifests.settings_sources import build_configuration
from tests.support.kuberay_pods import AGENT_PORT, DASHBOARD_PORT, head_pod, worker_pod
from tests.support.pods import HOST, Pod
from tests.support.s3_server import BUCKET, S3Server, running_s3

MODEL = "efficientnet-lite0"
START_S = 300
# Tries to start the head.
HEADS = 4
# As small as a manifest's pods may be on this machine.
SIZES = ["device=cpu", f"model={MODEL}", "head.cpus=1", "head.memory=2Gi", "cpu.cpus=1", "cpu.memory=2Gi", "drain_s=30"]


@dataclass
class Rehearsal:
    """The pods of one cluster, and what happened when."""

    cluster: dict[str, Any]
    serves: bool
    root: Path | None
    work: Path
    server: S3Server
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    began: float = field(default_factory=time.monotonic)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Write down what happens."""
        self.timeline.append((round(time.monotonic() - self.began, 1), text))
        sys.stderr.write(f"{self.timeline[-1][0]:7.1f} {text}\n")

    def environment(self) -> dict[str, str]:
        """Return what the Secret of the storage holds."""
        return self.server.environment(f"http://{HOST}:{self.server.port}")

    def start(self, workers: int) -> None:
        """Make the head and its workers, and return when all are ready."""
        options: Any = {"token": self.token, "secrets": self.environment(), "serves": self.serves}
        head = self.add("head", head_pod(self.cluster, **options))
        self.note("head: started")
        # On a busy machine Ray's own limit of 30 s for its parts ends it; KubeRay's operator makes it anew.
        for _ in range(HEADS):
            with suppress(ChildProcessError):
                self.wait("the head is ready", lambda: is_ready(head))
                time.sleep(10)
                if head.is_alive:
                    break
            self.note("head: ended; started again")
            head.kill()
            head.start()
        for _ in range(workers):
            self.add_worker()
        self.wait("all workers are ready", lambda: all(is_ready(pod) for pod in self.pods))

    def add_worker(self) -> Pod:
        """Make a worker, as the operator does where one is missing."""
        options: Any = {"token": self.token, "secrets": self.environment(), "serves": self.serves}
        (group,) = self.cluster["workerGroupSpecs"]
        pod = self.add(f"worker-{len(self.pods)}", worker_pod(group, self.pods[0].address, **options))
        self.note(f"{pod.name}: started")
        return pod

    def add(self, name: str, command: Any) -> Pod:
        """Start a pod."""
        pod = Pod(name, 10 + len(self.pods), command, self.root, self.work / f"{name}.log")
        pod.start()
        self.pods.append(pod)
        return pod

    def wait(self, what: str, is_so: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait for something, and note it."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if not self.pods[0].is_alive:
                raise ChildProcessError(f"the head has ended; its log is in {self.work}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not after {timeout_s:g} s; logs in {self.work}")
            time.sleep(0.5)
        self.note(what)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask the head's dashboard, as the operator does."""
        request = urllib.request.Request(
            f"http://{self.pods[0].address}:{DASHBOARD_PORT}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"x-ray-authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def drain(self, pod: Pod) -> None:
        """Stop a worker as a kubelet does, and have the operator replace it."""
        self.note(f"{pod.name}: to be stopped (preStop: drain)")
        took = pod.stop()
        self.note(f"{pod.name}: gone after {took:.1f} s of {pod.command.grace_s}, its preStop after {pod.hook_s:.1f}")
        sys.stderr.write(pod.hook_output[-400:])

    def end(self) -> None:
        """End all pods."""
        for pod in reversed(self.pods):
            if pod.process is not None:
                pod.kill()


def is_ready(pod: Pod, path: str = "/api/healthz", port: int = AGENT_PORT) -> bool:
    """Probe a pod as KubeRay has the kubelet do it for Ray 2.53 or newer."""
    with (
        suppress(OSError, ValueError),
        urllib.request.urlopen(f"http://{pod.address}:{port}{path}", timeout=5) as answer,
    ):
        return bool(answer.status == 200)
    return False


@contextmanager
def rehearsal(target: Target, settings: list[str], root: Path | None, shards: int) -> Iterator[tuple[Rehearsal, Any]]:
    """Yield a cluster that has no pods yet, and the rendered resource.

    Args:
        target: What is rendered.
        settings: With which.
        root: Of the image.
        shards: Of the source on the S3 server, with 50 images each.
    """
    resource = list(yaml.safe_load_all(render(target, build_configuration([*SIZES, *settings]))))[-1]
    spec = resource["spec"]
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        work = Path(folder)
        write_source(work / "data" / BUCKET / "in", "photos", shards, 50)
        with running_s3(work / "data", "0.0.0.0") as server:
            cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
            at = Rehearsal(cluster, target is Target.RAYSERVICE, root, work, server)
            try:
                yield at, spec
            except BaseException:
                for pod in at.pods:
                    sys.stderr.write(f"--- {pod.name}\n{pod.log.read_text()[-3000:]}\n")
                raise
            finally:
                at.end()
