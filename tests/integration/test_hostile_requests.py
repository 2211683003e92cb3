"""Hostile requests and images, and many uploads, at once against the endpoint as users start it."""

from __future__ import annotations

import sys

import pytest
import requests

from serve.local.ports import free_ports
from tests.support.hostile_load import watch_health
from tests.support.peak_memory import PeakMemory, named
from tests.support.serve_process import serving

MAX_PRIVATE_BYTES = 600 * 2**20
P99_S = 0.25
WORST_S = 0.5


@pytest.mark.long
@pytest.mark.ray
def test_no_request_takes_the_memory_or_the_time_of_others(tmp_path):
    (grpc_port,) = free_ports(1)
    options = ("--model", "efficientnet-lite0", "--max-replicas", "1", "--grpc-port", str(grpc_port))
    with serving(tmp_path, *options) as endpoint:
        replicas = endpoint.replicas()
        with PeakMemory(lambda: replicas) as before:
            pass
        with PeakMemory(lambda: replicas) as memory:
            health, statuses = watch_health(endpoint.url, f"127.0.0.1:{grpc_port}")
        afterwards = requests.get(f"{endpoint.url}/healthz", timeout=10).status_code
        is_same = endpoint.replicas() == replicas

    sys.stdout.write(
        f"before={before.worst / 2**20:.0f} MiB peak={memory.worst / 2**20:.0f} MiB n={len(health.seconds)} "
        f"p50={health.quantile(0.5):.3f} p99={health.quantile(0.99):.3f} worst={max(health.seconds):.3f}\n"
    )
    sys.stdout.write(f"{statuses}\n")
    assert not health.failures
    assert (afterwards, is_same) == (200, True)
    assert not {status for counts in statuses.values() for status in counts} & {"500", "INTERNAL", "UNKNOWN"}
    assert memory.worst <= MAX_PRIVATE_BYTES
    assert health.quantile(0.99) <= P99_S
    assert max(health.seconds) <= WORST_S


@pytest.mark.long
@pytest.mark.ray
def test_a_thousand_uploads_at_once_are_answered_within_the_memory_of_few(tmp_path):
    with serving(tmp_path, "--model", "efficientnet-lite0", "--max-replicas", "1") as endpoint:
        replicas = endpoint.replicas()
        proxies = PeakMemory(lambda: named(endpoint.descendants(), "haproxy"))
        with PeakMemory(lambda: replicas) as memory, proxies:
            health, statuses = watch_health(endpoint.url, "", "--uploads", "1000")
        afterwards = requests.get(f"{endpoint.url}/healthz", timeout=10).status_code

    sys.stdout.write(
        f"replica={memory.worst / 2**20:.0f} MiB HAProxy={proxies.worst / 2**20:.0f} MiB n={len(health.seconds)} "
        f"p99={health.quantile(0.99):.3f} worst={max(health.seconds):.3f} {statuses}\n"
    )
    assert (afterwards, health.failures) == (200, [])
    assert memory.worst <= MAX_PRIVATE_BYTES
