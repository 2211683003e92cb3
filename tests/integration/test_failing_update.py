"""An update whose replicas cannot start costs nothing but itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve.local.ports import free_ports
from tests.support.serve_process import environment


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_old_replicas_go_on_serving_and_the_status_says_why_the_new_ones_do_not_start():
    (port,) = free_ports(1)

    done = subprocess.run(
        [sys.executable, "-m", "tests.support.failing_update", str(port)],
        cwd=Path(__file__).parents[2], env=environment(), capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.splitlines()[-1])
    first, second, third = got["told"]
    assert first == ""
    assert second.startswith("RuntimeError: Deploying application shardlabel failed")
    assert third.startswith("UnknownModelError"), "known before any replica is touched"
    assert (got["status"], got["states"]) == ("DEPLOY_FAILED", {"RUNNING": 1})
    assert "/nowhere/access.log" in got["why"]
    assert set(got["seen"]) == {"200"}
    assert got["seen"]["200"] > 20
