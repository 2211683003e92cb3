"""`shardlabel submit` on a real cluster of three nodes, with source and DEST on a real S3 server."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.patches.patch import SWITCH_VARIABLE
from pipeline.session.metrics import scraped_names
from tests.support.cluster_nodes import Nodes, running_nodes
from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import parts
from tests.support.s3_server import BUCKET, Call, FaultProxy, S3Server, running_proxy, running_s3, serves_s3
from tests.support.tcp_proxy import TcpProxy, running_tcp_proxy
from tests.support.tiny_model import colour_shards

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not serves_s3(), reason="moto is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

SHARDS = 20
SAMPLES = 20


@dataclass
class Gate:
    """Holds back what a run reads: `open_shards` may be read, the others wait until it is raised."""

    open_shards: int = SHARDS
    asked: list[str] = field(default_factory=list)

    def __call__(self, call: Call) -> None:
        found = re.search(r"shard-(\d+)\.tar$", call.path)
        if found is None or call.method != "GET":
            return
        self.asked.append(found[0])
        while int(found[1]) >= self.open_shards:
            time.sleep(0.05)


@dataclass
class World:
    """The cluster, the storage, the way between a submission and the dashboard, and what a local run writes."""

    nodes: Nodes
    server: S3Server
    storage: FaultProxy
    gate: Gate
    line: TcpProxy
    model: Path
    expected: dict[str, bytes]

    def arguments(self, output: str) -> list[str]:
        return ["label", f"s3://{BUCKET}/in", "--output", f"s3://{BUCKET}/{output}", "--model", str(self.model),
                "--top-k", "3", "--json"]  # fmt: skip

    def command(self, *options: str, label: list[str] | None = None) -> list[str]:
        behind = ["--", *label] if label else []
        return [sys.executable, "-m", "cluster.cli", "submit", "--address", self.line.url, *options, *behind]

    def environment(self, **more: str) -> dict[str, str]:
        token = {"RAY_AUTH_TOKEN": self.nodes.environment["RAY_AUTH_TOKEN"]}
        return {**os.environ, **token, **more}

    def parts(self, output: str) -> dict[str, bytes]:
        return parts(self.server.fetch(output))

    def job(self, name: str) -> dict[str, object]:
        found: dict[str, object] = self.nodes.get(f"/api/jobs/{name}")
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("s3") / "data"
    colour_shards(folder / BUCKET / "in", shards=SHARDS, samples=SAMPLES)
    gate = Gate()
    with running_s3(folder) as server, running_proxy(server, gate) as storage:
        label_without_ray(folder / BUCKET / "in", folder / "here", tiny_model)
        expected = parts(folder / "here")
        # A home of its own: nothing that the command cached here is to be found there.
        home = str(tmp_path_factory.mktemp("cluster-home"))
        # Jobs have their patches of Ray, whatever these tests have: one test is about what Ray prints.
        environment = {"SHARDLABEL_HOME": home, SWITCH_VARIABLE: "", **storage.environment()}
        with running_nodes(2, **environment) as nodes:  # noqa: SIM117
            with running_tcp_proxy(nodes.dashboard_port) as line:
                yield World(nodes, server, storage, gate, line, tiny_model, expected)


@dataclass
class Running:
    """A command that runs, and what it has written so far."""

    process: subprocess.Popen[bytes]
    text: str = ""

    def wait_for(self, wanted: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while wanted not in self.text:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {self.text}"
            time.sleep(0.05)

    def end(self, timeout_s: float = 90) -> int:
        code = self.process.wait(timeout_s)
        time.sleep(0.2)
        return code


@contextmanager
def started(world: World, command: list[str], *, terminal: bool = False) -> Iterator[Running]:
    """Start a command, read what it writes as it comes, and leave nothing behind."""
    if terminal:
        reader, theirs = pty.openpty()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    else:
        reader, theirs = os.pipe()
        streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, env=world.environment(), start_new_session=True, **streams)
    os.close(theirs)
    running = Running(process)
    running.reader = reader  # type: ignore[attr-defined]

    def read() -> None:
        while True:
            try:
                content = os.read(reader, 65536)
            except OSError:  # a terminal whose other side is closed
                return
            if not content:
                return
            running.text += content.decode(errors="replace")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        world.gate.open_shards = SHARDS
        if process.poll() is None:
            process.kill()
            process.wait()
        thread.join(5)
        os.close(reader)


def metrics_of(world: World, name: str) -> str:
    """Return the samples of a metric, of all nodes."""
    lines = "\n".join(world.nodes.metrics(node) for node in world.nodes.nodes if node.process.poll() is None)
    return "\n".join(line for line in lines.splitlines() if line.startswith(f"{name}{{"))


def worker_logs(world: World) -> str:
    """Return what worker processes have logged; not what the driver shows."""
    return "\n".join(path.read_text() for path in world.nodes.folder.glob("session_2*/logs/worker-*.err"))


def lacking(seen: dict[str, str], world: World) -> list[str]:
    """Look at every metric that the project scrapes, and return those, and the stages, that no node has told of yet."""
    never = {"ray_shardlabel_unit_retries_total", "ray_shardlabel_storage_retries_total"}  # nothing goes wrong
    seen |= {name: metrics_of(world, name) or seen.get(name, "") for name in scraped_names()}
    wanted = [
        'ray_shardlabel_images_total status="ok"',
        *(f'ray_shardlabel_stage_seconds_total stage="{stage}"' for stage in ("read", "decode", "label", "write")),
        *(name for name in seen if name not in never),
    ]
    parts = [words.partition(" ") for words in wanted]
    return [f"{name} {label}" for name, _, label in parts if not seen[name] or label not in seen[name]]


def eventually(claim: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_on_three_nodes_writes_what_a_local_run_does_over_a_cut_connection(world):
    world.gate.open_shards = 4
    sent_before = world.line.bytes_up
    with started(world, world.command("--submission-id", "ok", label=world.arguments("ok"))) as first:
        first.wait_for("batches of 16")  # while it runs: half of the input is held back
        with started(world, world.command("--submission-id", "ok")) as second:
            second.wait_for("batches of 16")
            os.kill(second.process.pid, signal.SIGINT)
            left = second.end()
        world.gate.open_shards = 4
        seen: dict[str, str] = {}
        # Each process reports for itself, every few seconds: the names come one by one.
        eventually(lambda: not lacking(seen, world))
        logs = worker_logs(world)
        world.line.cut()
        first.wait_for("the connection is lost")
        world.line.mend()
        first.wait_for("reconnected")
        world.gate.open_shards = SHARDS
        code = first.end()
    again = subprocess.run(
        world.command("--submission-id", "ok", label=world.arguments("ok")),
        env=world.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert code == 0, first.text
    assert world.parts("ok") == world.expected
    assert len(world.expected) == SHARDS
    assert first.text.count("batches of 16") == 1  # no line twice, whatever was cut
    assert first.text.count(f"{SHARDS * SAMPLES} images in s3://") == 1
    assert "nothing is sent" in first.text
    assert world.line.bytes_up - sent_before < 100_000
    assert all('job="ok"' in line for lines in seen.values() for line in lines.splitlines())
    assert re.search(r"job=ok unit=\d+ node=[0-9a-f]{8} done rows=20 ok=20", logs)
    assert left == 130
    assert "keeps running; to attach: shardlabel submit" in second.text
    assert again.returncode == 0
    assert json.loads(again.stdout.splitlines()[-1])["images"] == SHARDS * SAMPLES


def test_a_killed_driver_is_started_anew_then_stopped_and_then_finished_under_one_name(world):
    world.gate.open_shards = 4
    command = world.command("--submission-id", "again", "--retries", "1", label=world.arguments("again"))
    with started(world, command, terminal=True) as run:
        eventually(lambda: len(world.parts("again")) >= 3)
        (driver,) = [pid for pid, line in world.nodes.nodes[0].pids().items() if "cluster.cli label" in line]
        os.kill(driver, signal.SIGKILL)
        run.wait_for("restarting the job, retry 1 of 1")
        finished = len(world.parts("again"))
        world.gate.asked.clear()
        run.text = ""
        run.wait_for("batches of 16")
        read_again = set(world.gate.asked)
        os.kill(run.process.pid, signal.SIGINT)
        run.wait_for("stop the job (s)")
        os.write(run.reader, b"s\n")
        run.wait_for("stopping the job")
        world.gate.open_shards = SHARDS
        stopped = run.end()
    done = subprocess.run(
        world.command("--submission-id", "again", label=world.arguments("again")),
        env=world.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert finished >= 3
    assert len(read_again) <= SHARDS - finished + 1  # one may have been published, and not yet been recorded
    assert stopped == 4, run.text
    assert "was stopped; run the same command again to resume" in run.text
    assert done.returncode == 0, done.stderr
    assert "stopped before, and is restarted" in done.stderr
    assert world.parts("again") == world.expected


@pytest.mark.long
def test_the_time_is_up_and_a_lost_node_costs_nothing_but_its_work(world):
    world.gate.open_shards = 2
    timed = world.command("--submission-id", "late", "--timeout", "12", label=world.arguments("late"))
    with started(world, timed) as run:
        run.wait_for("the time is up: stopping the job")
        world.gate.open_shards = SHARDS
        late = run.end()
    world.gate.open_shards = 4
    with started(world, world.command("--submission-id", "late", label=world.arguments("late"))) as run:
        run.wait_for("batches of 16")
        extra = world.nodes.add(cpus=1)
        eventually(lambda: any("LabelUnits" in line for line in extra.pids().values()), 120)
        extra.kill()
        run.wait_for("is lost; other nodes redo its work")
        world.gate.open_shards = SHARDS
        code = run.end(150)

    assert late == 5, run.text
    assert re.search(r"node=\w{8} \(worker-\d\) is lost", run.text)
    assert len(run.text.splitlines()) < 30  # Ray would have printed pages about it
    assert code == 0, run.text
    assert world.parts("late") == world.expected


def test_other_code_is_sent_and_a_failure_says_why(world, tmp_path):
    copy = tmp_path / "copy"
    root = Path(__file__).parents[2]
    for package in ("models", "pipeline", "serve", "cluster"):
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    cli = copy / "pipeline" / "job.py"
    cli.write_text(cli.read_text().replace('"shardlabel: {', '"shardlabel, sent along: {'))
    before = world.line.bytes_up

    done = subprocess.run(
        world.command("--submission-id", "other", label=world.arguments("other")),
        env=world.environment(PYTHONPATH=str(copy)), capture_output=True, text=True, timeout=120, check=False, cwd=copy,
    )  # fmt: skip
    too_large = [*world.arguments("none"), "--actors", "50"]
    begun = subprocess.run(
        world.command("--no-wait", "--submission-id", "none", label=too_large),
        env=world.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    failed = subprocess.run(
        world.command("--submission-id", "none"),
        env=world.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "sent along" in done.stdout
    sent = re.search(r"sent the code: (\d+) bytes", done.stderr)
    assert sent
    assert 50_000 < int(sent[1]) < 1_000_000
    assert world.line.bytes_up - before < int(sent[1]) + 100_000
    assert world.parts("other") == world.expected
    assert begun.returncode == 0, begun.stderr
    assert "to attach: shardlabel submit --address" in begun.stderr
    assert failed.returncode == 1
    assert "label exited with 2" in failed.stderr
    assert "50 actors need 50 CPUs, and Ray has 2" in failed.stdout


def test_a_cluster_that_cannot_be_used_is_one_line_in_seconds(world, tmp_path):
    cases = {
        "needs a token": ({"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}, world.arguments("x")),
        "does not accept the token": ({"RAY_AUTH_TOKEN": "wrong"}, world.arguments("x")),
        "a node's own disk": ({}, ["label", f"s3://{BUCKET}/in", "--output", str(tmp_path / "out"),
                                   "--model", str(world.model), "--top-k", "3"]),
    }  # fmt: skip
    for message, (environment, label) in cases.items():
        started_at = time.monotonic()

        done = subprocess.run(
            world.command(label=label), env=world.environment(**environment), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert time.monotonic() - started_at < 20


def test_a_driver_that_joins_is_told_of_a_nodes_own_disk_and_looks_whether_a_shared_one_is_shared(world, tmp_path):
    command = [
        sys.executable, "-m", "cluster.cli", "label", str(world.server.fetch("in")), "--output", str(tmp_path / "out"),
        "--model", str(world.model), "--top-k", "3", "--address", world.nodes.address,
    ]  # fmt: skip
    environment = world.environment(RAY_AUTH_MODE="token")

    def label(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    refused, done = label(), label("--shared-filesystem")

    assert refused.returncode == 2
    assert "is on a node's own disk, and the cluster has 3 nodes" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out") == world.expected
    assert not list((tmp_path / "out" / "_shardlabel").glob("seen-by-all*"))
