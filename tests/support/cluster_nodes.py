"""A real Ray cluster of several nodes on this machine: `ray start` head and workers, each a process that can be killed.

It has its own ports and temporary folder, so that it neither joins nor disturbs another Ray on this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.chaos import processes_below
from tests.support.s3_server import free_port

OBJECT_STORE_BYTES = 100 * 2**20
START_S = 90.0


@dataclass
class Node:
    """One `ray start --block`. The kernel ends its child processes with it, as Ray sets up."""

    process: subprocess.Popen[bytes]
    name: str
    metrics_port: int
    log: Path

    def pids(self) -> dict[int, str]:
        """Return the node's processes with their command lines."""
        return processes_below(self.process.pid)

    def kill(self) -> None:
        """Kill all of the node's processes at once, as a power cut would."""
        doomed = self.pids()
        self.process.kill()
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Nodes:
    """A running cluster.

    Attributes:
        gcs_port: Port that other nodes and drivers connect to.
        dashboard_port: Port of the Jobs API.
        folder: Ray's temporary folder.
        environment: Environment of the nodes, and so of the jobs.
        nodes: The head first; killed nodes stay in the list.
    """

    gcs_port: int
    dashboard_port: int
    folder: Path
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return the Jobs API's address."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def address(self) -> str:
        """Return the address for drivers."""
        return f"127.0.0.1:{self.gcs_port}"

    def add(
        self, *, cpus: int = 1, gpus: int = 0, resources: dict[str, float] | None = None, wait: bool = True
    ) -> Node:
        """Start a worker node; with `wait`, return when the cluster lists it."""
        name = f"worker-{len(self.nodes)}"
        node = self._start(name, ["--address", self.address], cpus, gpus, resources)
        if wait:
            self.wait_for(node)
        return node

    def wait_for(self, *started: Node) -> None:
        """Return when the cluster lists these nodes; a node that has ended, as on a busy machine, is an error."""
        while missing := {node.name for node in started} - self.node_ids().keys():
            for node in started:
                if node.name in missing:
                    self._check(node)
            time.sleep(0.2)

    def start_head(self, *, cpus: int = 0, timeout_s: float = START_S) -> Node:
        """Start the head, and return when its Jobs API answers."""
        ports = [
            "--head", "--port", str(self.gcs_port), "--dashboard-host", "127.0.0.1",
            "--dashboard-port", str(self.dashboard_port), "--temp-dir", str(self.folder),
            "--ray-client-server-port", str(free_port()), "--include-dashboard", "true",
        ]  # fmt: skip
        node = self._start("head", ports, cpus, 0, None)
        deadline = time.monotonic() + timeout_s
        while True:
            self._check(node)
            with suppress(OSError, ValueError):
                if self.num_alive() >= 1:
                    return node
            if time.monotonic() > deadline:
                raise TimeoutError(f"the head did not come up in {timeout_s:g} s; see {node.log}")
            time.sleep(0.3)

    def get(self, path: str) -> Any:
        """Return the dashboard's JSON answer for a path."""
        headers = {}
        if "RAY_AUTH_TOKEN" in self.environment:
            headers["Authorization"] = f"Bearer {self.environment['RAY_AUTH_TOKEN']}"
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def num_alive(self) -> int:
        """Return the number of nodes that the cluster considers alive."""
        listing = self.get("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in listing)

    def metrics(self, node: Node) -> str:
        """Return a node's metrics in Prometheus's text format."""
        with urllib.request.urlopen(f"http://127.0.0.1:{node.metrics_port}/metrics", timeout=10) as answer:
            text: bytes = answer.read()
        return text.decode()

    def node_ids(self) -> dict[str, str]:
        """Return the Ray ids of the live nodes, by name."""
        listing = self.get("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return {node["node_name"]: node["node_id"] for node in listing if node["state"] == "ALIVE"}

    def stop(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.kill()

    def _start(
        self, name: str, ports: list[str], cpus: int, gpus: int, resources: dict[str, float] | None
    ) -> Node:  # fmt: skip
        metrics_port = free_port()
        command = [
            str(Path(sysconfig.get_path("scripts"), "ray")), "start", "--block", "--disable-usage-stats", *ports,
            "--node-ip-address", "127.0.0.1", "--node-name", name,
            "--num-cpus", str(cpus), "--num-gpus", str(gpus), "--resources", json.dumps(resources or {}),
            "--object-store-memory", str(OBJECT_STORE_BYTES), "--metrics-export-port", str(metrics_port),
            "--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port()),
            "--min-worker-port", "0", "--max-worker-port", "0",
        ]  # fmt: skip
        log = self.folder.parent / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=self.environment, stdout=file, stderr=file, start_new_session=True)
        node = Node(process, name, metrics_port, log)
        self.nodes.append(node)
        return node

    def _check(self, node: Node) -> None:
        if node.process.poll() is not None:
            raise RuntimeError(f"{node.name} ended with {node.process.returncode}: {node.log.read_text()[-2000:]}")


@contextmanager
def running_nodes(workers: int = 0, *, head_cpus: int = 0, cpus: int = 1, **environment: str) -> Iterator[Nodes]:
    """Run a head and workers until the block ends.

    Args:
        workers: Number of nodes besides the head.
        head_cpus: CPUs of the head; with 0 no labelling runs there.
        cpus: CPUs of each worker.
        environment: Added to the environment of the nodes, and so of the jobs.
    """
    # A short path, since the path of a Unix socket has at most 107 characters.
    work = Path(tempfile.mkdtemp(prefix="sl-", dir=os.environ.get("RAY_TMPDIR")))
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    # A dead node is noticed within seconds; the default of 25 s is for unreliable networks.
    faster = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
    # By default metrics are reported every 10 s.
    faster["RAY_metrics_report_interval_ms"] = "1000"
    # Its own token: Ray 2.60 requires one by default, and would otherwise use or create the user's.
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    nodes = Nodes(free_port(), free_port(), work / "ray", inherited | faster | secret | environment)
    try:
        nodes.start_head(cpus=head_cpus)
        for _ in range(workers):
            # One after the other: on a busy machine two parallel starts have exceeded Ray's limit of 30 s.
            nodes.add(cpus=cpus)
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(work, ignore_errors=True)
