"""A whole run with source and DEST on a real S3 server: the same files as on a disk, resumed, and refused keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labelled_dest import label_without_ray
from tests.support.labelling import parts
from tests.support.s3_server import BUCKET, S3Server, running_proxy, running_s3, serves_s3
from tests.support.tiny_model import colour_jpeg, colour_shards

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not serves_s3(), reason="moto is not installed")]


SHARDS = f"s3://{BUCKET}/in/shard-{{000..003}}.tar"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3") / "data"
    colour_shards(folder / BUCKET / "in", shards=4, samples=30)
    loose = folder / BUCKET / "loose"
    loose.mkdir()
    for number in range(150):
        (loose / f"{number:04d}.jpg").write_bytes(colour_jpeg(("red", "green", "blue")[number % 3], 20 + number % 7))
    (loose / "0070.jpg").write_bytes(b"no image")
    with running_s3(folder) as server:
        yield server


def label(
    server: S3Server, model: Path, output: str, *, source: str = SHARDS, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "label", source,
               "--output", output, "--model", str(model), "--top-k", "3", "--json"]  # fmt: skip
    environment = {**os.environ, **server.environment(), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_run_on_s3_writes_what_a_run_on_a_disk_does_and_is_resumed(server, tiny_model, tmp_path):
    first = label(server, tiny_model, f"s3://{BUCKET}/out")
    second = label(server, tiny_model, f"s3://{BUCKET}/out")
    label_without_ray(server.folder / BUCKET / "in", tmp_path / "out", tiny_model)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert json.loads(first.stdout.splitlines()[-1])["images"] == 120
    assert json.loads(second.stdout.splitlines()[-1])["units_now"] == 0
    assert len(parts(tmp_path / "out")) == 4
    assert parts(server.fetch("out")) == parts(tmp_path / "out")


def test_loose_images_on_s3_several_units_at_a_time_are_the_files_that_a_disk_gives(server, tiny_model, tmp_path):
    remote = label(server, tiny_model, f"s3://{BUCKET}/loose-out", source=f"s3://{BUCKET}/loose")
    on_disk = label(server, tiny_model, str(tmp_path / "out"), source=str(server.folder / BUCKET / "loose"))

    assert (remote.returncode, on_disk.returncode) == (0, 0), remote.stderr + on_disk.stderr
    assert json.loads(remote.stdout.splitlines()[-1])["errors"] == {"undecodable": 1}
    assert len(parts(tmp_path / "out")) > 5
    assert re.search(
        r"\d+ units to label; judging by their sizes, the actors will be busy (9\d|100)% of the time", on_disk.stderr
    )
    assert parts(server.fetch("loose-out")) == parts(tmp_path / "out")


def test_wrong_keys_are_one_error_in_seconds_that_names_the_path(server, tiny_model):
    with running_proxy(server, lambda call: "secret") as proxy:
        started = time.perf_counter()
        done = label(server, tiny_model, f"s3://{BUCKET}/other", AWS_ENDPOINT_URL=proxy.url)

    assert done.returncode in (1, 2)
    assert "s3://bucket/in" in done.stderr
    assert "check the credentials" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - started < 30
