"""Ports: free ones, and who holds one that is not."""

from __future__ import annotations

import contextlib
import errno
import random
import socket

import psutil

from models.errors import ConfigError


def check_free(host: str, port: int, option: str) -> None:
    """Raise ConfigError, naming the port, its option and the process that holds it, if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As HAProxy listens: a port of connections that were just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as err:
            raise ConfigError(f"--host {host} is no address of this machine: {err.strerror}") from err
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on {host}:{port}: {err.strerror}; use {option} or --host") from err
            raise ConfigError(f"port {port} is in use {_by_whom(port)}; stop that, or use {option}") from err


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that were free a moment ago, none of those that connections are given."""
    ports: list[int] = []
    candidates = iter(random.sample(range(20_000, 30_000), 1_000))
    while len(ports) < count:
        port = next(candidates)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports


def _by_whom(port: int) -> str:
    """Say which process listens on a port, as far as this user may see."""
    with contextlib.suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                command = " ".join(psutil.Process(each.pid).cmdline())
                hint = ", which may be another endpoint" if "haproxy" in command else ""
                return f"by process {each.pid} ({command[:120]}){hint}"
    return "by a process of another user"
