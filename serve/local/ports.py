"""Ports: free ones, and who holds one that is not."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from models.errors import ConfigError

_LISTENING = "0A"


def check_free(host: str, port: int, option: str) -> None:
    """Raise ConfigError, naming the port and the process that holds it, if nothing can listen there.

    Args:
        host: Address to listen on.
        port: Which port.
        option: The option that sets it.
    """
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
    """Return ports of the loopback interface that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _by_whom(port: int) -> str:
    for pid, command in holders(port):
        orphan = "; it looks like one that an earlier endpoint left behind" if "haproxy" in command else ""
        return f"by process {pid} ({command[:120]}){orphan}"
    return "by a process of another user"


def holders(port: int) -> list[tuple[int, str]]:
    """Return (pid, whole command) of the processes that listen on a port, as far as this user may see; Linux only."""
    inodes = _listening_inodes(port)
    found = []
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # of another user, or gone by now
            if any(_target(fd) in inodes for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((int(process.name), command))
    return found


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:  # closed by now
        return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
