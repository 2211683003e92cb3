"""Metrics of all replicas from any of them, and ports that are held."""

from __future__ import annotations

import socket

import pytest

from models.errors import ConfigError
from serve.local.ports import check_free, free_ports
from serve.metrics import ServeMetrics, merged


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
    assert (
        max(ports) < 32_768
    )  # those above are given to connections, by Linux' default: one may have it a moment later
    for port in ports:
        check_free("127.0.0.1", port, "--port")


def test_a_host_that_is_not_of_this_machine_is_an_error():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77"):
        check_free("192.0.2.77", 8000, "--port")
