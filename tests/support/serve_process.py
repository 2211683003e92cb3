"""A real `shardlabel serve` process, started like a user would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve.local.ports import free_ports

READY_S = 120


@dataclass
class ServeProcess:
    process: subprocess.Popen
    port: int
    grpc_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_live_over_grpc(self) -> bool:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            return live(b"", timeout=20) == b"\x08\x01"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def descendants(self) -> set[int]:
        """Return the ids of all descendants, including haproxy and workers."""
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found, grew = {self.process.pid}, True
        while grew:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grew = bool(more)
        return found - {self.process.pid}

    def replicas(self) -> list[int]:
        """Return the replicas' process ids."""
        found = []
        for pid in sorted(self.descendants()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                    found.append(pid)
        return found


def command(*options: str) -> list[str]:
    return [str(Path(sys.executable).parent / "shardlabel"), "serve", *options]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept.pop("RAY_ADDRESS", None)
    return kept


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[ServeProcess]:
    """Start the endpoint and wait until it is ready; stop it when the block ends, also on an error."""
    port, grpc_port = free_ports(2)
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command("--port", str(port), "--grpc-port", str(grpc_port), *options),
            stdout=file, stderr=file, env=environment(), start_new_session=True,
        )  # fmt: skip
    endpoint = ServeProcess(process, port, grpc_port, log)
    try:
        deadline = time.monotonic() + READY_S
        while "ready: " not in endpoint.output():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the endpoint did not start:\n{endpoint.output()}")
            time.sleep(0.1)
        yield endpoint
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired as err:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError(f"the endpoint did not end:\n{endpoint.output()}") from err
