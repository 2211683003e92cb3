"""Metrics of all replicas from any of them, and ports that are held."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from models.errors import ConfigError
from serve.local.ports import check_free, free_ports
from serve.metrics import MetricsShare, ServeMetrics, merged


class Shelf:
    """A store in this process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False

    def put(self, key, value):
        self.values[key] = value

    def all(self):
        if self.broken:
            raise ConnectionError("gone")
        return dict(self.values)

    def delete(self, key):
        self.values.pop(key, None)


@pytest.fixture
def shelf(monkeypatch):
    monkeypatch.setattr("serve.metrics.PERIOD_S", 0.02)
    return Shelf()


def replica(shelf: Shelf, name: str, requests: int) -> MetricsShare:
    metrics = ServeMetrics("m", name)
    for _ in range(requests):
        metrics.request("/v1/classify", 200, 0.01, None)
    return MetricsShare(shelf, name, metrics.render)


def total(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if line.startswith("shardlabel_requests_total{")]
    return {line.split('replica="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert claim()


def test_any_replica_answers_for_all(shelf):
    first, second = replica(shelf, "a", 2), replica(shelf, "b", 3)

    wait_until(lambda: total(first.render_all()) == {"a": 2.0, "b": 3.0})
    wait_until(lambda: total(second.render_all()) == {"a": 2.0, "b": 3.0})
    first.close()
    second.close()


def test_each_family_has_one_head_and_its_samples_behind_it():
    text = merged([ServeMetrics("m", name).render() for name in ("a", "b")]).decode()

    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    family = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            family = line.split()[2]
        elif not line.startswith("#"):
            assert line.startswith(family), line


def test_the_last_counts_of_one_that_ended_stay_a_while_and_go(shelf, monkeypatch):
    gone, asked = replica(shelf, "a", 2), replica(shelf, "b", 3)
    gone.close()

    assert total(asked.render_all()) == {"a": 2.0, "b": 3.0}
    monkeypatch.setattr("serve.metrics.KEEP_S", 0.0)
    assert total(asked.render_all()) == {"b": 3.0}
    asked.close()


def test_without_the_store_a_replica_answers_for_itself(shelf):
    alone = replica(shelf, "a", 2)
    shelf.broken = True

    assert total(alone.render_all()) == {"a": 2.0}
    alone.close()


def test_a_port_that_is_held_is_named_with_its_process():
    import os

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]

        with pytest.raises(ConfigError, match=rf"port {port} is in use by process {os.getpid()} .*--port"):
            check_free("127.0.0.1", port, "--port")


def test_free_ports_are_free_and_differ():
    ports = free_ports(5)

    assert len(set(ports)) == 5
    for port in ports:
        check_free("127.0.0.1", port, "--port")


def test_a_host_that_is_not_of_this_machine_is_an_error():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77"):
        check_free("192.0.2.77", 8000, "--port")


def test_those_that_are_long_gone_are_forgotten_though_nobody_asks(shelf, monkeypatch):
    monkeypatch.setattr("serve.metrics.KEEP_S", 0.3)
    gone = replica(shelf, "gone", 1)
    gone.close()
    assert "gone" in shelf.values

    stays = replica(shelf, "stays", 1)

    wait_until(lambda: set(shelf.values) == {"stays"})
    stays.close()
