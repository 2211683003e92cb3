"""Where a real `shardlabel serve` listens, and what many silent connections to its gRPC port do to it."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.listening import beyond_loopback, listening
from tests.support.serve_process import serving

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc"),
]

MODEL = "efficientnet-lite0"


# With HAProxy the fast ones are in test_serve.py; what --host changes is in test_prediction_log.py.
@pytest.fixture(scope="module", params=["--no-haproxy", pytest.param("--haproxy", marks=pytest.mark.long)])
def endpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    options = ["--model", MODEL, "--max-replicas", "1", request.param]
    with serving(folder, *options, "--access-log", str(folder / "access.log")) as running:
        yield running
        # Ctrl-C must not take the 30 s that Serve gives load balancers to notice.
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(25)


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
    pids = {endpoint.process.pid, *endpoint.descendants()}

    assert {("127.0.0.1", endpoint.port), ("127.0.0.1", endpoint.grpc_port)} <= set(listening(pids))
    assert beyond_loopback(pids) == {}


def test_calls_are_in_the_access_log(endpoint):
    assert endpoint.is_live_over_grpc()
    time.sleep(1.0)

    lines = [json.loads(line) for line in (endpoint.log.parent / "access.log").read_text().splitlines()]

    assert {(line["client"], line["status"]) for line in lines if line["method"] == "gRPC"} == {("127.0.0.1", 200)}


@pytest.mark.long
def test_4300_silent_connections_to_grpc_do_not_stop_http(endpoint):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"this process may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    try:
        with contextlib.ExitStack() as held:
            hold_silent(held, endpoint.grpc_port, 4300)
            assert max(healthy(endpoint.url) for _ in range(5)) < 10
        assert endpoint.is_live_over_grpc()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
