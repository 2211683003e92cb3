"""A run whose URIs hold a secret: every byte that it writes is looked at, and the secret is in none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3_server import BUCKET, KEY_ID, SECRET, S3Server, running_s3, serves_s3
from tests.support.tiny_model import colour_shards

pytestmark = pytest.mark.ray

# Ray's folder, which goes with the run, is kept to be looked at.
LABEL = """
import shutil, types
import pipeline.session.local
pipeline.session.local.shutil = types.SimpleNamespace(which=shutil.which, rmtree=lambda *args, **options: None)
from cluster.cli import main
main()
"""
JOBS = """
from pipeline.session.connect import connect
cluster = connect(None)
import ray
from ray._raylet import GcsClient
client = GcsClient(address=ray.get_runtime_context().gcs_address)
print([job.entrypoint for job in client.get_all_job_info(timeout=10).values()])
cluster.close()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short enough for Ray's sockets
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    if not serves_s3():
        pytest.skip("moto is not installed")
    colour_shards(tmp_path / BUCKET / "in", shards=2, samples=20)
    with running_s3(tmp_path) as running:
        yield running


def test_a_secret_in_a_uri_is_in_nothing_that_a_run_writes(server, tiny_model, folder):
    place = f"s3://{KEY_ID}:{SECRET}@{BUCKET}"
    with_keys = {**os.environ, **server.environment(), "TMPDIR": str(folder)}
    without_keys = {name: value for name, value in with_keys.items() if value not in (KEY_ID, SECRET)}

    def label(place: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        options = ["--output", f"{place}/out", "--model", str(tiny_model), "--top-k", "3", "--json"]
        command = [sys.executable, "-c", LABEL, "--verbose", "label", f"{place}/in/shard-{{000..001}}.tar", *options]
        return subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)

    first = label(place, without_keys)
    again = label(f"s3://{BUCKET}", with_keys)

    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert (summary["images"], summary["output"]) == (40, f"s3://{BUCKET}/out")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["units_now"] == 0, "other credentials are no other source"
    written = [path for root in (folder, server.fetch("out")) for path in root.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET.encode() not in first.stdout + first.stderr


def test_ray_notes_the_command_line_without_the_secret():
    command = [
        sys.executable,
        "-c",
        JOBS,
        "label",
        "s3://KEYID:W0RD@bucket/in",
        "--output=s3://bucket/out?secret_key=W0RD",
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "s3://bucket/in --output=s3://bucket/out" in done.stdout
    assert "W0RD" not in done.stdout
