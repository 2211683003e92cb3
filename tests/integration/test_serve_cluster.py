"""The endpoint on a Ray that runs already: `serve deploy`, `serve run`, `--address`, and what Prometheus sees of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.serve_load import Client, Load, sample_images
from serve import environment
from serve.config import ServeConfig, ServeOptions
from serve.local.ports import free_ports
from tests.support.cluster_nodes import Nodes, running_nodes
from tests.support.prometheus import Prometheus, needs_prometheus, running_prometheus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and HAProxy"),
]

ROOT = Path(__file__).parents[2]
BIN = Path(sysconfig.get_path("scripts"))
MODEL = "efficientnet-lite0"
READY_S = 120.0


@dataclass
class Cluster:
    """A Ray of one node, and where its Serve listens."""

    nodes: Nodes
    port: int
    grpc_port: int
    folder: Path

    def environment(self) -> dict[str, str]:
        return {**self.nodes.environment, "RAY_ADDRESS": self.nodes.address, "RAY_DASHBOARD_ADDRESS": self.nodes.url}

    def serve(self, *arguments: str) -> str:
        """Run Ray's own `serve` to its end."""
        command = [str(BIN / "serve"), *arguments]
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False, timeout=READY_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, **args: object) -> None:
        """`serve deploy serve/config.yaml`, on loopback, with a port of its own, and these args beside the file's."""
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        (application,) = config["applications"]
        application["args"] |= args
        self._deploy(config)

    def deploy_nothing(self) -> None:
        """Delete the application; Serve runs on, and listens where it did: `serve run` has no option for that."""
        self._deploy(yaml.safe_load((ROOT / "serve" / "config.yaml").read_text()) | {"applications": []})
        wait_for(lambda: not self.applications(), "the end of the application")

    def _deploy(self, config: dict[str, Any]) -> None:
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        config["grpc_options"]["port"] = self.grpc_port
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        self.serve("deploy", "--address", self.nodes.url, str(path))

    def applications(self) -> dict[str, Any]:
        return yaml.safe_load(self.serve("status", "--address", self.nodes.url))["applications"]

    def replicas(self) -> list[int]:
        return [pid for pid, text in self.nodes.nodes[0].pids().items() if text.startswith("ray::ServeReplica")]

    def labels(self) -> int:
        """Return how many labels an answer has; 0 where there is none."""
        with contextlib.suppress(OSError, EOFError):
            status, _, body = Client("127.0.0.1", self.port).post(sample_images(None)[0])
            return body.count(b'"label":') if status == 200 else 0
        return 0

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen]:
        """Run a command that serves until it is told to stop."""
        process = subprocess.Popen(command, env=self.environment(), cwd=self.folder)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Short: the path of HAProxy's socket has at most 97 characters, of which Ray adds 57.
    folder = Path(tempfile.mkdtemp(prefix="sl-"))
    config = ServeConfig(model=MODEL)
    # What docs/serving.md says that every node has, and ports of this test's own.
    told = environment.of_every_node(config) | environment.of_haproxy(config, str(BIN / "shardlabel-haproxy"))
    told |= environment.of_this_machine(ServeOptions(), folder)
    try:
        # Two replicas, the third of a rolling update, and a bulk run.
        with running_nodes(head_cpus=4, **told) as nodes:
            yield Cluster(nodes, *free_ports(2), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], object], what: str, seconds: float = READY_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.3)


@pytest.fixture
def deployed(cluster) -> Cluster:
    """Return the cluster with an endpoint as the file says: of another test, or deployed here."""
    if cluster.labels() != 5:
        cluster.deploy(max_replicas=2)
        wait_for(lambda: cluster.labels() == 5, "an answer with the file's settings")
    return cluster


# Why a query gives no series on an endpoint that is well; any other has to give some.
EMPTY = {
    "shardlabel_label_drift": "no baseline was given",
    "shardlabel_prediction_log_dropped_total": "no prediction log was asked for",
    "shardlabel_dropped_total": "nobody went away, or waited for too long",
    'status="503"': "nothing was refused",
    'status!="503"': "nothing failed",
}


def queries(path: str) -> list[str]:
    panels = json.loads((ROOT / path).read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    variables = {"$model": ".*", "$route": ".*", "$job": ".*", "$__rate_interval": "20s"}
    return [re.sub(r"\$\w+", lambda name: variables[name[0]], query) for query in found]


@needs_prometheus
def test_prometheus_finds_series_for_every_query_of_the_dashboard(deployed, tmp_path):
    cluster = deployed
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "cluster" / "prometheus.yaml").read_text())["scrape_configs"]
    }
    ray, endpoint = jobs["ray"], jobs["shardlabel-serve"]
    ray["file_sd_configs"] = [{"files": [str(cluster.nodes.folder / "prom_metrics_service_discovery.json")]}]
    endpoint["static_configs"] = [{"targets": [f"127.0.0.1:{cluster.port}"]}]
    rules = ROOT / "serve" / "alerts.yaml"

    with running_prometheus(tmp_path, [ray, endpoint], [rules]) as prometheus:
        wrong: list[bytes] = []
        with Load(
            "127.0.0.1", cluster.port, sample_images(None), 4,
            answered=lambda status, body: wrong.append(body) if status != 200 else None,
        ) as load:  # fmt: skip
            assert Client("127.0.0.1", cluster.port).post(b"no image")[0] == 422
            os.kill(cluster.replicas()[0], signal.SIGKILL)

            def unexplained() -> list[str]:
                # Asked again and again: a counter's first step is not seen by `rate`.
                Client("127.0.0.1", cluster.port).post(b"no image")
                silent = [query for query in queries("serve/grafana.json") if not prometheus.query(query)]
                return [query for query in silent if not any(name in query for name in EMPTY)]

            time.sleep(10)
            deadline = time.monotonic() + 20
            while (missing := unexplained()) and time.monotonic() < deadline:
                time.sleep(1)
            # Prometheus first evaluates a group at a moment of its own within the group's interval, 15 s here.
            wait_for(lambda: "unknown" not in {rule["health"] for rule in alerts_of(prometheus)}, "the rules")
        for query in queries("cluster/grafana-bulk.json"):  # no bulk run is here: that it can be read has to do
            prometheus.query(query)
        alerts = alerts_of(prometheus)

    # The only replica was killed: its requests wait for its successor, in Serve's own proxy, which made a 500 of them.
    assert set(load.tally.statuses) <= {200, 503, 504}, (load.tally.summary(), wrong)
    assert not missing, "\n".join(missing)
    assert {rule["health"] for rule in alerts} == {"ok"}
    assert [rule["name"] for rule in alerts if rule["state"] == "firing"] == []


def alerts_of(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def test_a_changed_option_is_rolled_out_and_no_request_fails(deployed):
    cluster = deployed
    with Load("127.0.0.1", cluster.port, sample_images(None), 4) as load:
        time.sleep(1)
        cluster.deploy(max_replicas=2, top_k=3)
        wait_for(lambda: cluster.labels() == 3, "an answer of the new version")
        wait_for(lambda: cluster.applications()["shardlabel"]["status"] == "RUNNING", "the rollout")
        time.sleep(2)

    assert load.tally.failed == 0, load.tally.summary()
    assert cluster.labels() == 3


@pytest.mark.long
def test_a_version_that_cannot_be_built_leaves_the_old_one_serving_and_says_why(deployed):
    cluster = deployed
    with Load("127.0.0.1", cluster.port, sample_images(None), 4) as load:
        cluster.deploy(max_replicas=2, model="no-such-model")
        wait_for(lambda: cluster.applications()["shardlabel"]["status"] == "DEPLOY_FAILED", "the refusal")
        message = cluster.applications()["shardlabel"]["message"]
        time.sleep(2)

    assert load.tally.failed == 0, load.tally.summary()
    assert set(load.tally.statuses) == {200}
    assert "no-such-model" in message


def test_serve_run_serves_until_it_is_stopped(cluster):
    cluster.deploy_nothing()
    with cluster.running(str(BIN / "serve"), "run", "serve.app:build_app", f"model={MODEL}", "top_k=2"):
        wait_for(lambda: cluster.labels() == 2, "an answer")

    wait_for(lambda: cluster.labels() == 0, "the end")


def test_the_command_joins_a_ray_that_runs_and_takes_its_application_away_again(cluster):
    command = [str(BIN / "shardlabel"), "serve", "--model", MODEL, "--top-k", "4", "--port", str(cluster.port)]
    with cluster.running(*command, "--grpc-port", "0", "--address", cluster.nodes.address) as process:
        wait_for(lambda: cluster.labels() == 4, "an answer")

    assert process.returncode == 0
    assert cluster.applications() == {}


def test_the_ray_that_was_joined_runs_on(cluster):
    assert cluster.nodes.num_alive() == 1
