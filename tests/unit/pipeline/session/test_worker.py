"""A worker process ends when its raylet does, whatever it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

RAYLET = """
import os, subprocess, sys
worker = "import time; from pipeline.session.worker import prepare_worker as p; p(); print('up', flush=True); time.sleep(99)"
environment = {**os.environ, "RAY_RAYLET_PID": str(os.getpid()) if sys.argv[1] == "its own" else "1"}
child = subprocess.Popen([sys.executable, "-c", worker], env=environment)
print(child.pid, flush=True)
child.wait()
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux alone")
@pytest.mark.parametrize(("parent", "ends"), [("its own", True), ("another", False)])
def test_a_worker_that_is_stopped_ends_with_its_raylet_and_with_no_other_parent(parent, ends):
    raylet = subprocess.Popen([sys.executable, "-c", RAYLET, parent], stdout=subprocess.PIPE, text=True)
    worker = int(raylet.stdout.readline())
    try:
        assert raylet.stdout.readline() == "up\n"
        os.kill(worker, signal.SIGSTOP)  # it cannot end by itself
        raylet.kill()
        raylet.wait()
        deadline = time.monotonic() + (10 if ends else 0.5)
        while is_alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_alive(worker) is not ends
    finally:
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)
