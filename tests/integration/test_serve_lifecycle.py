"""The events of the endpoint's life, each under load: no request fails. Minutes each, so that `make test-long` runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.serve_lifecycle import EVENTS
from tests.support.serve_process import environment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and HAProxy"),
]


@pytest.mark.parametrize("name", EVENTS)
def test_no_request_fails(name):
    command = [sys.executable, "-m", "benchmarks.serve_lifecycle", "--only", name]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=800)

    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout.splitlines()[-1])
    assert events
    for event in events:
        assert event["failed"] == 0, event
        assert event["seconds"] >= 0, event
        assert event["requests"] > 0 or event["event"] == "1 to 0, nobody asks", event
