"""Where a real `shardlabel serve` listens, and what many silent connections to its gRPC port do to it."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from serve.local.ports import free_ports
from tests.support.listening import beyond_loopback, listening
from tests.support.serve_process import ServeProcess, serving

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc"),
]

MODEL = "efficientnet-lite0"


@pytest.fixture(scope="module", params=["--haproxy", "--no-haproxy"])
def endpoint(request, tmp_path_factory):
    (grpc_port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("serve")
    options = ["--model", MODEL, "--grpc-port", str(grpc_port), "--max-replicas", "1", request.param]
    with serving(folder, *options, "--access-log", str(folder / "access.log")) as running:
        yield running, grpc_port
        # Ctrl-C must not take the 30 s that Serve gives load balancers to notice.
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(25)


def call(grpc_port: int) -> bool:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        return live(b"", timeout=20) == b"\x08\x01"


def hold_silent(stack: contextlib.ExitStack, port: int, count: int) -> None:
    """Connect, and say nothing; those that find no place stay where the kernel keeps them."""
    for _ in range(count):
        connection = stack.enter_context(socket.socket())
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))


def healthy(url: str) -> float:
    """Return how long `/healthz` took, seconds."""
    began = time.monotonic()
    with urllib.request.urlopen(f"{url}/healthz", timeout=30) as answer:
        assert answer.status == 200
    return time.monotonic() - began


def test_nothing_listens_beyond_loopback(endpoint):
    running, grpc_port = endpoint
    pids = {running.process.pid, *running.descendants()}

    assert ("127.0.0.1", grpc_port) in listening(pids)
    assert ("127.0.0.1", running.port) in listening(pids)
    assert beyond_loopback(pids) == {}
    assert call(grpc_port)


def test_calls_are_in_the_access_log(endpoint):
    running, grpc_port = endpoint
    assert call(grpc_port)
    time.sleep(1.0)

    lines = [json.loads(line) for line in (running.log.parent / "access.log").read_text().splitlines()]

    assert {(line["client"], line["status"]) for line in lines if line["method"] == "gRPC"} == {("127.0.0.1", 200)}


@pytest.mark.long
def test_4300_silent_connections_to_grpc_do_not_stop_http(endpoint):
    running, grpc_port = endpoint
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"this process may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    try:
        with contextlib.ExitStack() as held:
            hold_silent(held, grpc_port, 4300)
            assert max(healthy(running.url) for _ in range(5)) < 10
        assert call(grpc_port)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_address_is_listened_on_by_what_clients_ask_alone(tmp_path):
    (grpc_port,) = free_ports(1)
    options = ["--model", MODEL, "--host", "127.0.0.2", "--grpc-port", str(grpc_port), "--max-replicas", "1"]
    with serving(tmp_path, *options) as running:
        places = listening({running.process.pid, *running.descendants()})

    assert {place for place in places if place[0] == "127.0.0.2"} == {
        ("127.0.0.2", running.port),
        ("127.0.0.2", grpc_port),
    }


def test_a_local_ray_of_bulk_listens_on_loopback_alone(tmp_path):
    code = (
        "import ray; from pipeline.session.local import start_local_ray; start_local_ray(num_cpus=1);"
        "ray.get(ray.remote(lambda: 1).remote()); print('up', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        pids = {process.pid, *ServeProcess(process, 0, tmp_path).descendants()}

        assert listening(pids)
        assert beyond_loopback(pids) == {}
    finally:
        process.communicate("\n", timeout=60)
