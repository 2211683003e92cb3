"""Start a contender, wait until it answers with the right labels, and end it with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import descendants
from benchmarks.serve_rivals.contenders import Contender
from benchmarks.serve_rivals.load import ROOT, Bodies

START_S = 120
STOP_S = 30


@dataclass(frozen=True, slots=True)
class Running:
    """A started server.

    Attributes:
        pid: Of the process that was started.
        url: Where it takes images.
        start_s: Seconds until it first answered.
    """

    pid: int
    url: str
    start_s: float

    def processes(self) -> list[int]:
        """Return its processes' ids."""
        return descendants(self.pid)


@contextlib.contextmanager
def running(contender: Contender, bodies: Bodies, expected: list[list[int]]) -> Iterator[Running]:
    """Run a contender on free ports.

    Args:
        contender: Who.
        bodies: Requests in its form.
        expected: Label ids of the first images; an answer with others is an error.
    """
    port, port2, port3 = (str(each) for each in free_ports(3))
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as folder:
        names = {"port": port, "port2": port2, "port3": port3, "folder": folder}
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment |= {key: value.format(**names) for key, value in contender.environment.items()}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [part.format(**names) for part in contender.command]
        with Path(folder, "log").open("w+b") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                url = f"http://127.0.0.1:{port}{contender.path}"
                _wait(process, url, bodies, Path(folder, "log"))
                start_s = time.perf_counter() - began
                for body, ids in zip(bodies.contents, expected, strict=False):
                    found = contender.ids(json.loads(_ask(url, body, bodies.content_type)))
                    assert found == ids, f"{contender.name} answers with other labels: {found}, expected {ids}"
                yield Running(process.pid, url, round(start_s, 2))
            finally:
                _stop(process)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _ask(url: str, body: bytes, content_type: str) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def _wait(process: subprocess.Popen, url: str, bodies: Bodies, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            _ask(url, bodies.contents[0], bodies.content_type)
        except OSError as err:  # refused, or 404 and 503 while it starts
            if process.poll() is not None or time.monotonic() > until:
                tail = log.read_bytes()[-2000:].decode(errors="replace")
                raise SystemExit(f"{' '.join(process.args)} does not answer ({err}):\n{tail}") from err
            time.sleep(0.2)
        else:
            return


def _stop(process: subprocess.Popen) -> None:
    """Ask it to end, and end what is left of what it started."""
    started = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
